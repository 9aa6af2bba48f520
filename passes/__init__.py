"""Passes turn a model into another one; chains of them make variants."""
