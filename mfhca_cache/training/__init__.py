"""Stage two: folds trained from a cache."""
