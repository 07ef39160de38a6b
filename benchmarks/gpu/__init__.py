"""What ``benchmarks/run.py`` and ``benchmarks/compile_kernels.py`` are made of; not part of the installed package."""
