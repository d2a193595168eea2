"""Scores, statistics and measurements of masks."""
