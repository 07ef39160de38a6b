"""The quality of maps and scores: what the fast paths change, how many samples and passes are enough."""
