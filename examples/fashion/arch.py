"""A small residual CNN for grey 28x28 images: `optimize --arch examples/fashion/arch.py:resnet`."""

import torch
from torch import Tensor, nn

CLASSES = 10
STEM = 16  # channels at 28x28 pixels
WIDTHS = (32, 64)  # channels of the stages, at 14x14 and 7x7 pixels
MEAN, STD = 0.2860, 0.3530  # of the training pixels, once scaled to 0..1


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N,cin,H,W) -> (N,cout,H/stride,W/stride)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:  # the add needs equal shapes
            conv = nn.Conv2d(cin, cout, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """Float (N,cin,H,W) -> float (N,cout,H/stride,W/stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, two residual blocks per stage, global average pooling, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, STEM, 3, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        cin = STEM
        for cout in WIDTHS:
            blocks += [Block(cin, cout, stride=2), Block(cout, cout, stride=1)]
            cin = cout
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(cin, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels uint8 (N,1,28,28) -> logits float (N,10)."""
        x = (image.float() / 255 - MEAN) / STD
        x = self.blocks(self.stem(x))
        logits: Tensor = self.fc(x.mean((2, 3)))  # global average pool
        return logits


def resnet() -> nn.Module:
    """Make the network, untrained; its weights are in resnet.safetensors."""
    return ResNet()
