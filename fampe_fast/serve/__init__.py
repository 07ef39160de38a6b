"""Explanations over HTTP: a bounded queue, one thread that owns the device, and what a service needs around them."""
