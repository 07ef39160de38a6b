"""Run whole jobs over files, and what they share: batches, labels, records. The command line and programs call them."""
