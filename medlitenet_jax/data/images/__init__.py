"""Photographs and masks as files and as arrays: read, written, resized, cleaned, compared."""
