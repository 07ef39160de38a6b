"""Every kernel's function in plain PyTorch, written to be read beside the formula; imports only torch."""
