"""Recipes: `base.py` holds every field, the others edit a few."""
