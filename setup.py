"""Packaging of fampe_fast; everything but the dependencies and the folder mapping stands in pyproject.toml."""

from setuptools import find_packages, setup

# kernels/ and reference/ stand at the top of the tree, but a top-level `kernels` would collide with another package.
MAPPED = {"fampe_fast.kernels": "kernels", "fampe_fast.reference": "reference"}

RUNTIME = [
    "torch>=2.7",
    "torchvision>=0.22",
    "timm>=1.0.16",
    "numpy>=1.26",
    "pillow>=10.1",
    "safetensors>=0.4.3",
    "huggingface_hub>=0.25",
    "matplotlib>=3.8",
    "contourpy>=1.2",
    "rich>=13.7",
    "triton>=3.3; platform_system == 'Linux'",
]
PEERS = ["captum>=0.8"]
TEST = [*PEERS, "pytest>=8", "pytest-benchmark>=5", "pytest-xdist>=3.6.1", "scipy>=1.11.1"]
DEV = [*TEST, "ruff>=0.8", "mypy>=1.14", "build>=1.2", "setuptools>=68", "wheel"]

setup(
    packages=[*find_packages(include=["fampe_fast", "fampe_fast.*"]), *MAPPED],
    package_dir=MAPPED,
    package_data={"fampe_fast": ["py.typed", "weights/*.safetensors", "weights/*.json"]},
    install_requires=RUNTIME,
    extras_require={"peers": PEERS, "test": TEST, "dev": DEV},
    entry_points={"console_scripts": ["fampe-fast=fampe_fast.cli:main"]},
)
