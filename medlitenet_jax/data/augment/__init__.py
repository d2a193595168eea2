"""Augmentations of photographs and their masks, on the host or on the device."""
