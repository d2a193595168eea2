"""Public data sets: fetched, converted and read."""
