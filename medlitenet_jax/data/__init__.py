"""Photographs and their masks: sources, splits, augmentation and batches."""
