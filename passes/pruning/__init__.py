"""Structured pruning on the ONNX graph: which channels belong together, which go, and the refit."""
