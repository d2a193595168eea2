"""The other networks of the paper's Table I, each under the recipe of `base.py`."""
