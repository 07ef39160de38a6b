"""The numerical primitives, each dispatched to the backend that fits the tensors' device (see ``backends``).

Signatures and results are those of the functions of the same name in ``fampe_fast.reference``; each is a torch custom
operator (see ``primitives``), so they may be traced by ``torch.compile``.
"""

from .primitives import *  # noqa: F403
