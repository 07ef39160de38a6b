"""Define the two kinds of failure that cost an image: one that stays, and one that may pass."""

from __future__ import annotations


class PermanentError(Exception):
    """An image that will never be explained: its file is missing, empty, damaged or too large."""


class TransientError(Exception):
    """An image that may be explained another time: a network, a store or a permission failed, or memory ran out."""
