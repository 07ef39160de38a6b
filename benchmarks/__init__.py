"""Benchmarks and their tools; not part of the installed package. Run them from the repository's root.

``python -m benchmarks.run`` measures every kernel on a GPU, ``python -m benchmarks.side_by_side`` compares whole
methods with other packages, and ``python -m benchmarks.scaling`` computes how long data sets take. The other commands
are ``python -m benchmarks.FOLDER.NAME``, in folders by subject: ``kernels`` (single kernels and their machine code),
``end_to_end`` (calls of whole methods and metrics) and ``quality`` (quality of maps and scores). ``common`` holds the
shared code.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Root of the repository, where the commands run."""
