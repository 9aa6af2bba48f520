"""What a run leaves: its report, the chosen variant, and the folder that ships it."""
