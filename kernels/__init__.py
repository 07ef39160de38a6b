"""Triton kernels of the spectral hot path; each file has the name of its PyTorch counterpart in ``reference``."""
