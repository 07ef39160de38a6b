"""Which state of the checkout a result belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The short name of the commit, with ``+`` where files have changed since; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
