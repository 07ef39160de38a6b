"""Code that the benchmarks share: machine, timing, results and plots."""
