"""Timing: of models in turns, while they are built and in fresh processes, and of the device."""
