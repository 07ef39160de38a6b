"""Benchmarks and the tools beside them; not part of the installed package. Run from the repository's root.

``python -m benchmarks.run`` measures every kernel on a GPU, ``python -m benchmarks.side_by_side`` whole methods beside
what people use today; ``python -m benchmarks.scaling`` computes what data sets cost. The other commands are
``python -m benchmarks.FOLDER.NAME``, in folders by what they measure: ``kernels`` (single kernels and their machine
code), ``end_to_end`` (calls of whole methods and metrics) and ``quality`` (how good maps and scores are). ``common`` is
what these share.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Of the repository, where the commands run."""
