"""MedLiteNet, after the paper."""
