"""Run whole jobs over files, for the command line and for programs, with shared batches, labels and records."""
