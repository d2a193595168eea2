"""Public data sets: download, conversion and reading."""
