"""Rounds of a federation in one process, with the product's own training, sums and server strategies."""
