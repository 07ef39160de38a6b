"""Triton kernels of the spectral hot path; each file bears the name of its plain PyTorch twin in ``reference``."""
