"""Serve explanations over HTTP, with a bounded queue and one thread that owns the device."""
