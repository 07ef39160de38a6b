"""Benchmarks of single kernels: least bytes and arithmetic, machine code, times."""
