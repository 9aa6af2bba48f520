"""Latencies of models: timed in turns, while they are built, and in fresh processes."""
