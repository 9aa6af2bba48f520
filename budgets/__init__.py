"""What was promised, and whether the measurements keep the promise.

Standard library, numpy and scipy.special only; nothing here starts a process or reads a file.
"""
