"""Every kernel's function in plain PyTorch, written to be read beside the formula. Imports torch alone."""
