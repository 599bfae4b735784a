"""A residual network for 32x32 images in PyTorch, as in RobustBench's zoo: pre-activation blocks, batch norm."""

from itertools import pairwise

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, inputs):
        hidden = torch.relu(self.first_norm(inputs))
        return self.shortcut(hidden) + self.second(torch.relu(self.second_norm(self.first(hidden))))


def resnet(width=16, classes=10):
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    norm = nn.BatchNorm2d(widths[-1])
    head = [norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1], classes)]
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), *blocks, *head)
