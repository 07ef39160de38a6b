"""Map the two folders at the top of the tree into the package; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

# kernels/ and reference/ stand at the top of the tree, but a top-level `kernels` would collide with another package.
# Inside fampe_fast/ links to them let tools see one tree; where a checkout has no links, this mapping is enough.
MAPPED = {"fampe_fast.kernels": "kernels", "fampe_fast.reference": "reference"}

setup(
    packages=sorted({*find_packages(include=["fampe_fast", "fampe_fast.*"]), *MAPPED}),
    package_dir=MAPPED,
)
