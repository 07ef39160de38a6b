"""Shared by the benchmarks: the machine, timing, results and plots."""
