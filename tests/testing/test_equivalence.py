"""The public suite of ``fampe_fast.testing`` on the package's own backends.

On a GPU the Triton kernels run there; without one, through Triton's interpreter, on the small cases.
"""

from fampe_fast.testing.suite import test_primitive

__all__ = ["test_primitive"]
