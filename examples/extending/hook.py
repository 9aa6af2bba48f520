"""A training loop of one's own: `distill{hook=examples/extending/hook.py:train}` in a chain."""

import time
from typing import Any

import torch

EPOCHS = 3


def train(student: Any, teacher: Any, batches: Any, context: Any) -> Any:
    """Train the student, a copy, until its outputs are near the teacher's; return it."""
    torch.manual_seed(context.seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    student.train()
    for epoch in range(EPOCHS):
        for batch in batches.training(epoch):
            with torch.no_grad():
                wanted = teacher(*batch.args)
            loss = torch.nn.functional.mse_loss(student(*batch.args), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if context.deadline is not None and time.monotonic() > context.deadline:
                return student
        context.progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3g}")
    return student
