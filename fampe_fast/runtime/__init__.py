"""Run passes of a model: chunks that fit, compilation, precision, what its output means, and what a caller has set."""
