"""What computations cost at least and what they take."""
