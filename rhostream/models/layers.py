"""What the convolutional networks are made of: convolution with batch norm, residual sums, a pooled head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Kernel = int | tuple[int, int]


def convolution(
    inputs: int,
    outputs: int,
    kernel: Kernel = 3,
    stride: int = 1,
    *,
    padding: Kernel | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    activation: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Convolution without bias, batch norm, activation; `padding` is by default what keeps the size at stride 1."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
        activation(inplace=True),
    ]


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)) (He et al. 2016)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what `body` and `shortcut` both give."""
        return self.activation(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


def pooled_head(features: int, classes: int, dropout: float = 0.0) -> list[nn.Module]:
    """The mean over the picture, dropout, one linear layer: (B, features, H, W) to (B, classes)."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, nn.Linear(features, classes)]


def he_normal(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> nn.Module:
    """The same model, its convolutions drawn anew from He's normal distribution, their biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
