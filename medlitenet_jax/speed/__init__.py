"""Minimum cost and measured time of computations."""
