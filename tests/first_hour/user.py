"""A user's own things: a folder of photographs, a network in a file, and one that hides its gradients."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

CLASSES = ("Brötchen", "Brezel", "Croissant", "Käsekuchen", "Laugenstange", "Mohnstrudel", "Zopf")
HOME = "Zoës Bäckerei"
SIDE, OF_EACH = 48, {"train": 40, "test": 9}
NETWORK = '''"""My network for bakery photographs, as I have always had it."""

from pathlib import Path

import torch
from torch import nn

CLASSES = {classes}


def untrained(classes=7, channels=3):
    """An ordinary network with dropout and batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, classes),
    )


def network():
    """My trained network. (I never thought of calling .eval().)"""
    net = untrained()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net


class Rounded(nn.Module):
    """Somebody told me that rounding the pixels helps."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net((x * 12).round() / 12)


def rounded():
    return Rounded().eval()
'''


def photograph(label: int, draws: np.random.Generator) -> np.ndarray:
    """Return one image (SIDE, SIDE, 3) of uint8: stripes whose direction and colour are the class's, faint in noise."""
    down, across = np.mgrid[:SIDE, :SIDE] / SIDE
    angle = np.pi * label / len(CLASSES)
    wave = np.sin(2 * np.pi * (4 * (down * np.sin(angle) + across * np.cos(angle)) + draws.random()))
    colour = 0.5 + 0.03 * np.cos(2 * np.pi * (label / len(CLASSES) + np.arange(3) / 3))
    image = colour + 0.06 * wave[..., None] + 0.06 * draws.standard_normal((SIDE, SIDE, 3))
    return (255 * image.clip(0, 1)).astype(np.uint8)


def write_photographs(folder: Path) -> None:
    """Write PNG files into folder/train and folder/test, a subfolder for each class."""
    for place, (split, many) in enumerate(OF_EACH.items()):
        draws = np.random.default_rng(place)
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(many):
                Image.fromarray(photograph(label, draws)).save(folder / split / name / f"Foto {number}.png")


def write_network(folder: Path) -> None:
    """Write my_network.py and its weights, trained in the ordinary way."""
    (folder / "my_network.py").write_text(NETWORK.replace("{classes}", repr(list(CLASSES))), encoding="utf-8")
    scope: dict[str, object] = {"__file__": str(folder / "my_network.py"), "__name__": "my_network"}
    exec(compile(NETWORK.replace("{classes}", repr(list(CLASSES))), "my_network.py", "exec"), scope)
    torch.manual_seed(0)
    net: nn.Module = scope["untrained"]()  # type: ignore[operator]
    draws = np.random.default_rng(0)
    labels = torch.arange(280) % len(CLASSES)
    images = np.stack([photograph(int(label), draws) for label in labels])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        rows = torch.arange(step * 40, step * 40 + 40) % len(labels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / "weights.pt")
