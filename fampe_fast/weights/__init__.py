"""Weights of the embedded classifier, with the record of how they came about; data, no code."""
