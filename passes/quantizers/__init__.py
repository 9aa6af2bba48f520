"""How integer ranges are chosen, and which libraries put them into a graph."""
