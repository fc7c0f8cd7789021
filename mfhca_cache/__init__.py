"""mfhca-cache."""
