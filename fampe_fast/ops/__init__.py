"""Compute the numerical primitives on the backend of their tensors' device (see ``backends``).

Signatures and results are those of the functions with the same name in ``fampe_fast.reference``; each is a torch custom
operator (see ``primitives``), which ``torch.compile`` can trace.
"""

from .primitives import *  # noqa: F403
