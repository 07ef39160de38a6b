"""Whole jobs over files: explain, evaluate, demo, doctor. The command line calls them, and so can a program."""
