"""A small convolutional network for small images."""

from torch import nn

from planish.models import activation as activation_of


def small_cnn(*, classes: int, channels: int, width: int = 32, activation: str = "relu") -> nn.Module:
    """Three 3x3 convolutions with batch norm and a linear head.

    The last two convolutions are twice as wide as the first; the second has stride 2.
    """

    def stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), activation_of(activation)]

    layers = [*stage(channels, width, 1), *stage(width, 2 * width, 2), *stage(2 * width, 2 * width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes))


COMPONENTS = {"small-cnn": small_cnn}
