"""How good maps and scores are: what the fast paths change, how many samples and passes are enough."""
