"""VGG networks with batch norm for small images."""

from torch import nn

from planish.models import activation as activation_of


def vgg11(*, classes: int, channels: int, width: int = 64, activation: str = "relu") -> nn.Module:
    """VGG-11 with batch norm for 32x32 images (Simonyan and Zisserman 2015); 9.2 M parameters.

    Eight 3x3 convolutions of 1, 2, 4, 4, 8, 8, 8 and 8 times the width, five max pools, a global mean, one linear
    layer: 9,231,114 parameters for 10 classes. Any other side works too. The convolutions' biases, idle before batch
    norm, are there so that the count is the usual one.
    Differs: the paper has three linear layers, which are for images of 224 pixels, and no batch norm.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for group in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for factor in group:
            outputs = factor * width
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), activation_of(activation)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


COMPONENTS = {"vgg-11": vgg11}
