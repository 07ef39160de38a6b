"""The path loop and its parts: configuration, samplers, chunked gradient aggregation."""
