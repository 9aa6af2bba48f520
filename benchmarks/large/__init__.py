"""Models of more than 2 GB."""
