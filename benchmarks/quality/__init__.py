"""Benchmarks of the quality of maps and scores: effects of the fast paths and of the numbers of samples and passes."""
