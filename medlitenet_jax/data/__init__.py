"""Photographs and their masks: where they come from and how they reach the network."""
