"""Single kernels: bytes and arithmetic they need at least, their machine code, their times."""
