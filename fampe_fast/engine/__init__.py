"""The path loop and what it is made of: configuration, samplers, chunked gradient aggregation."""
