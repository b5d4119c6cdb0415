"""Pre-activation residual networks for 32x32 images."""

from torch import Tensor, nn

from planish.core.errors import BadInput
from planish.models import Pointwise
from planish.models import activation as activation_of


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and activation (He et al. 2016b).

    The shortcut starts after the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(inputs), activation_of(activation)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(outputs), activation_of(activation)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else Pointwise(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(hidden)
        out: Tensor = self.conv2(self.act2(self.norm2(self.conv1(hidden)))) + shortcut
        return out


def preact_resnet18(*, classes: int, channels: int, width: int = 64, activation: str = "relu") -> nn.Module:
    """PreActResNet-18: 8 blocks of 1, 2, 4 and 8 times the width; 11.2 M parameters at the papers' 64."""
    return _network(channels, width, [factor * width for factor in (1, 2, 4, 8)], 2, classes, activation)


def wide_resnet(
    depth: int = 28, factor: int = 8, *, classes: int, channels: int, activation: str = "relu"
) -> nn.Module:
    """WideResNet-depth-factor: three groups of (depth - 4) / 6 blocks (Zagoruyko and Komodakis 2016).

    For 10 classes 28-10 has 36,479,194 parameters and 34-10 has 46,160,474. TRADES's published code counts 48.3 M for
    34-10 because it holds a group that it never uses. Raises BadInput.
    """
    if depth < 10 or (depth - 4) % 6:
        raise BadInput(f"a WideResNet's depth is 6 n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}")
    return _network(channels, 16, [factor * width for width in (16, 32, 64)], (depth - 4) // 6, classes, activation)


def _network(channels: int, stem: int, widths: list[int], blocks: int, classes: int, activation: str) -> nn.Module:
    """Return a stem of that width, a stage of so many blocks for each of the widths, and a linear head."""
    layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, 1, 1, bias=False)]
    inputs = stem
    for stage, width in enumerate(widths):
        for index in range(blocks):
            layers.append(PreActBlock(inputs, width, 2 if stage and not index else 1, activation))
            inputs = width
    head = [nn.BatchNorm2d(inputs), activation_of(activation), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(inputs, classes))


COMPONENTS = {"preact-resnet-18": preact_resnet18, "wide-resnet": wide_resnet}
