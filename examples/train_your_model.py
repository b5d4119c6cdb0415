"""Train a robust network of your own: plainly and with SEAT, and compare what is left under attack.

python examples/train_your_model.py
"""

import torch
from torch import nn

from planish import Linf, Settings, evaluate, fit
from planish.attacks.gradient import MultiTargeted
from planish.data import load
from planish.data.batches import Batches
from planish.methods import Method
from planish.methods.seat import SEAT
from planish.methods.standard import Standard
from planish.training.loop import start

THREAT = Linf(0.1)  # in pixels of [0, 1]; on colour photographs write Linf("8/255")
SETTINGS = Settings(epochs=6, batch_size=64, learning_rate=0.1)


def your_network() -> nn.Module:
    """Stand in for your own network. Softplus or GELU, not ReLU, if you want to try LLR as well."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Softplus()]
    second = [nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.Softplus()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(288, 10))


def trained(method: Method) -> nn.Module:
    """Train the network with the method."""
    state = start(your_network(), SETTINGS)
    batches = Batches(load("digits", "train"), SETTINGS.batch_size)
    for record in fit(state, method, THREAT, batches, SETTINGS, seed=0):
        print(f"  epoch {record.epoch}: loss {record.metrics['loss']:.3f}")
    return state.deployed


def main() -> None:
    """Train twice and evaluate both on the test images."""
    images = load("digits", "test", limit=200).as_batch()
    for method in (Standard(), SEAT()):
        print(type(method).__name__)
        attacks = {"multi-targeted-10-1": MultiTargeted(10, 1)}
        *_, last = evaluate(trained(method), images, THREAT, attacks)
        clean, robust = last.evaluation.clean_accuracy(), last.evaluation.robust_accuracy()
        print(f"  clean {clean.value:.1%}, robust {robust.value:.1%} [{robust.low:.1%}, {robust.high:.1%}]")


if __name__ == "__main__":
    main()
