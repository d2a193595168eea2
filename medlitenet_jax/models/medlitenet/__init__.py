"""MedLiteNet, as described in the paper."""
