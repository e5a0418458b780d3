"""Networks for ``hard_digits.py``, each with another way of tying its channels together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with batch norm, and nothing after it."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Head(nn.Module):
    """Mean over all positions, then one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut, as in ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = normed(inputs, outputs, 3, stride)
        self.second = normed(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = normed(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


def resnet(widths: tuple[int, int, int] = (24, 48, 96)) -> nn.Module:
    """Return stem and three stages of two residual blocks; 14.8 million multiplications."""
    layers: list[nn.Module] = [normed(1, widths[0], 3, 2), nn.ReLU()]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(2):
            layers.append(Residual(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, Head(inputs))


class Inverted(nn.Module):
    """Expand, filter each channel on its own, project: MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.add = stride == 1 and inputs == outputs
        parts = [normed(inputs, inner, 1), nn.ReLU6(), normed(inner, inner, 3, stride, inner)]
        self.body = nn.Sequential(*parts, nn.ReLU6(), normed(inner, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.add else self.body(x)


def mobile() -> nn.Module:
    """Return inverted residuals with ReLU6."""
    blocks = [(24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 2), (64, 64, 1)]
    body = [Inverted(*block) for block in blocks]
    return nn.Sequential(
        normed(1, 24, 3, 2), nn.ReLU6(), *body, normed(64, 160, 1), nn.ReLU6(), Head(160)
    )


class DenseLayer(nn.Module):
    """Batch norm and Relu before each convolution; its result joins all earlier channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.narrow = normed(inputs, 4 * growth, 1)
        self.wide = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [x, self.wide(functional.relu(self.narrow(functional.relu(self.norm(x)))))], 1
        )


def dense(growth: int = 12) -> nn.Module:
    """Return three DenseNet blocks of three layers."""
    layers: list[nn.Module] = [nn.Conv2d(1, 24, 3, 2, 1, bias=False)]
    width = 24
    for stage in range(3):
        for _ in range(3):
            layers.append(DenseLayer(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if stage < 2:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, Head(width))


def plain() -> nn.Module:
    """Return VGG's shape: convolutions, max pooling, Flatten and two linear layers."""
    layers: list[nn.Module] = []
    inputs = 1
    for width in (24, 48, 64):
        layers += [normed(inputs, width, 3), nn.ReLU(), normed(width, width, 3), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        inputs = width
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10)
    )


class Excited(nn.Module):
    """A residual block in two halves of channels, shuffled, with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grouped, self.mix = normed(width, width, 3, 1, 4), normed(width, width, 1)
        self.squeeze, self.excite = nn.Conv2d(width, 16, 1), nn.Conv2d(16, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(functional.silu(self.grouped(x)))
        gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1))))
        return functional.silu(x + y * torch.sigmoid(gate))


def excited() -> nn.Module:
    """Return blocks with grouped convolutions and gates per channel."""
    layers: list[nn.Module] = [normed(1, 32, 3, 2), nn.SiLU()]
    for inputs, outputs in ((32, 64), (64, 96)):
        layers += [Excited(inputs), Excited(inputs), normed(inputs, outputs, 3, 2), nn.SiLU()]
    return nn.Sequential(*layers, Excited(96), Head(96))


class Encoder(nn.Module):
    """A pre-norm transformer layer with four heads."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        size = width // self.heads
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(size)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """Four transformer layers over 64 patches of 4x4 pixels after a convolution."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(normed(1, 24, 3, 2), nn.ReLU())
        self.patches = nn.Conv2d(24, width, 2, 2)
        self.places = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.layers = nn.Sequential(*[Encoder(width) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(self.stem(image)).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


@dataclass(frozen=True)
class Net:
    """How one network is made and trained.

    Attributes:
        make: Builds it untrained.
        epochs: Passes over the training pictures.
        rate: Peak learning rate.
    """

    make: Callable[[], nn.Module]
    epochs: int
    rate: float


NETS = {
    "resnet": Net(resnet, 12, 3e-3),
    "mobile": Net(mobile, 10, 4e-3),
    "dense": Net(dense, 8, 4e-3),
    "plain": Net(plain, 6, 2e-3),
    "excited": Net(excited, 8, 4e-3),
    "vit": Net(Vit, 16, 1.5e-3),
}
