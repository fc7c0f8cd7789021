"""Splits from elsewhere: folds read from the files that others publish, matched, checked for leaks, and written."""
