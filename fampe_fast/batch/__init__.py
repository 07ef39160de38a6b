"""Explain data sets of any size: a frozen plan, shards that are written whole, one machine or many."""
