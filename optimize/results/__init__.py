"""What a run leaves: its report, the chosen variant or the nearest miss, and the result folder."""
