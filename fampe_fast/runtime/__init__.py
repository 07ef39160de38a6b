"""Run model passes: batch sizes that fit, compilation, precision, meaning of the output, isolation from the caller."""
