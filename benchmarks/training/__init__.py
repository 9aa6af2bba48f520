"""Pruning, distillation and quantization-aware recovery on real models, beside their targets."""
