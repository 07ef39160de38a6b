"""Define the two kinds of failure of an image: permanent and transient."""

from __future__ import annotations


class PermanentError(Exception):
    """An image that can never be explained: its file is missing, empty, damaged or too large."""


class TransientError(Exception):
    """An image that may be explained later: a network, a store or a permission failed, or memory ran out."""
