"""Single kernels: what they must move and compute, what their machine code says, how long they take."""
