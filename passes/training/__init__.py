"""Training-time functions: pruning, distillation, hooks and quantization-aware recovery.

They work on ``torch.nn.Module``, before export. torch is imported when they are called, so that
the command starts without it.
"""
