"""A smaller architecture: `student{arch=examples/extending/student.py:small}` in a chain."""

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two strided convolutions and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, 2, padding=1)
        self.fc = nn.Linear(32 * 7 * 7, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels uint8 (N,1,28,28) -> logits float (N,10), as the source."""
        x = torch.relu(self.conv1(image.float() / 255))
        x = torch.relu(self.conv2(x))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def small() -> nn.Module:
    """Make the network, untrained."""
    return Small()
