"""Triton kernels of the spectral hot path; a primitive's file bears the name of its plain twin in ``reference``."""
