"""A hundred classes where there is no data set of them: ten kinds of things, each changed in one of ten visible ways.

    python benchmarks/hundred.py --data ../shared/data --out runs/suite/hundred-classes

The label is ten times the image's own plus the number of the change, which is the image's position modulo ten. Written
as train.npz and test.npz, which `planish train --data` takes. This is not CIFAR-100.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from planish.data import load
from planish.storage.files import write_arrays


def alone(channel: int) -> Callable[[Tensor], Tensor]:
    """Return what keeps one of the three colours."""
    return lambda x: x * (torch.arange(3) == channel).view(3, 1, 1).to(x)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "a quarter turn": lambda x: x.rot90(1, (2, 3)),
    "a half turn": lambda x: x.rot90(2, (2, 3)),
    "three quarters of a turn": lambda x: x.rot90(3, (2, 3)),
    "inverted": lambda x: 255 - x,
    "grey": lambda x: x.float().mean(1, keepdim=True).expand_as(x).to(x),
    "red alone": alone(0),
    "green alone": alone(1),
    "blue alone": alone(2),
    "colours exchanged": lambda x: x[:, [1, 2, 0]],
}


def hundredfold(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images (N, 3, H, W) uint8, each changed by its position, and labels (N,) of ten times as many."""
    place, changed = torch.arange(len(x)) % len(CHANGES), x.clone()
    for number, change in enumerate(CHANGES.values()):
        changed[place == number] = change(x[place == number])
    return changed, len(CHANGES) * labels + place


def main(arguments: list[str] | None = None) -> None:
    """Write both splits."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="where the ten classes are")
    parser.add_argument("--train", type=int, default=20000, help="images for training")
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    for split, count in (("train", given.train), ("test", given.test)):
        images = load(given.data, split, count)
        x, labels = hundredfold(images.x, images.labels)
        classes = [f"{name}, {change}" for name in images.classes for change in CHANGES]
        write_arrays(given.out / f"{split}.npz", x=x.numpy(), y=labels.numpy(), classes=classes)


if __name__ == "__main__":
    main()
