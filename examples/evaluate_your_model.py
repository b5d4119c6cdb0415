"""Evaluate a network of your own: how much of its accuracy is left when every pixel may move a little?

    python examples/evaluate_your_model.py

The network here was trained on normalised images, as most are. `Normalized` puts the normalization inside the
model, so that images and radius stay in pixels of [0, 1]. The same from the command line:

    planish evaluate examples/evaluate_your_model.py:your_model --data digits --radius 0.1
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from planish import Linf, evaluate
from planish.attacks.gradient import APGD, APGDT
from planish.data import load
from planish.models import Normalized
from planish.records.evaluation import save

MEAN, STD = (0.31,), (0.38,)  # per channel: what your training code subtracts and divides by
THREAT = Linf(0.1)  # in pixels of [0, 1]; on colour photographs write Linf("8/255")
STEPS = 20  # 100 for a number that you report


def your_model() -> nn.Module:
    """Stand in for your own network with its weights."""
    torch.manual_seed(0)
    images = load("digits", "train").as_batch()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(network((images.x - MEAN[0]) / STD[0]), images.labels).backward()
        optimizer.step()
    return Normalized(network, MEAN, STD)


def main() -> None:
    """Print how many images are robust after each attack; keep the result of every image."""
    images = load("digits", "test").as_batch()
    attacks = {"apgd-ce": APGD(STEPS), "apgd-t": APGDT(STEPS)}
    about = {"model": {"name": "mine"}, "data": {"name": "digits"}}
    for evaluation, _ in evaluate(your_model(), images, THREAT, attacks, about=about):
        share = evaluation.robust_accuracy()
        attack = evaluation.names[-1] if evaluation.names else "no attack"
        print(f"after {attack}: {share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.total} images")
        save(evaluation, "runs/mine/evaluation.npz")
    print("for the page: planish report runs/mine")


if __name__ == "__main__":
    main()
