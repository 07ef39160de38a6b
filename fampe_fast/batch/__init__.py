"""Explain data sets of any size: a fixed plan, shards written atomically, one machine or many."""
