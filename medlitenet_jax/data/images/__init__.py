"""Reads, writes, resizes, cleans and compares photographs and masks."""
