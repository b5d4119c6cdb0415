"""The binarization test: an adversarial image is planted, and the attack must find it (Zimmermann et al. 2022)."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from planish.attacks import run
from planish.audit.check import FEWEST, Seen, Unknown, check, named, share
from planish.audit.evidence import Evidence
from planish.core.batch import Batch
from planish.core.losses import wide
from planish.core.modes import evaluating
from planish.core.randomness import keyed_draws
from planish.core.threat import ThreatModel

INNER, INSIDE = 60, 0.95
"""Points that keep the first class, and their ball in radii; the planted one is at the full radius."""
RIDGE = 1e-4


class Binary(nn.Module):
    """The network up to its last linear layer, with two classes in its place: 0 near the image, 1 what was planted."""

    def __init__(self, network: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.network, self.last = network, last
        self.weight, self.bias = torch.zeros(1), torch.zeros(())

    def features(self, x: Tensor) -> Tensor:
        """Return what the last linear layer is given, (N, F), in float32 or wider."""
        taken: list[Tensor] = []

        def take(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            taken.append((*arguments, *named.values())[0])

        with self.last.register_forward_pre_hook(take, with_kwargs=True):
            self.network(x)
        return wide(taken[-1].reshape(len(x), -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits, (N, 2)."""
        features = self.features(x)
        score = features @ self.weight.to(features) + self.bias.to(features)
        return torch.stack([-score, score], 1)


@check((32,), fail_at=95.0, worse="below", level="thorough", needs="graph")
def planted(evidence: Evidence) -> Seen | Unknown:
    """The attack finds adversarial images that were planted (binarization test)."""
    last = _last_linear(evidence.model, evidence.setup.x[:1])
    if last is None:
        reason = "The network has no linear layer to plant an adversarial image behind."
        return Unknown(reason, "Nothing is to be done.")
    binary, found = Binary(evidence.model, last), list[bool]()
    for row in evidence.drawn(evidence.every, 2 * evidence.plan.planted).tolist():
        one = evidence.images.select(slice(row, row + 1))
        if len(found) < evidence.plan.planted and _plant(binary, one, evidence.threat, evidence.seed):
            near = Batch(one.x, torch.zeros_like(one.labels), one.indices)
            generator = evidence.generator("planted")
            outcome = run(evidence.margin_pgd(), binary, near, evidence.threat, generator=generator)
            found.append(bool(outcome.score >= 0))
    hits, total = sum(found), len(found)
    if total < FEWEST:
        return Unknown(
            f"Only {total} adversarial images could be planted.", f"Audit with more images: it takes {FEWEST}."
        )
    seen = share(
        hits,
        total,
        f"PGD on the margin finds {hits} of {total} adversarial images that were planted in the ball.",
        "The attack misses what is known to be there: it is too weak for this model; use a stronger or adapted one.",
    )
    return replace(seen, sure=100 - share(total - hits, total, "").sure, hits=None)


@torch.no_grad()
def _last_linear(model: nn.Module, x: Tensor) -> nn.Linear | None:
    """Return the linear layer that a forward of images (N, ...) calls last; None if it calls none."""
    called: list[nn.Linear] = []
    with ExitStack() as hooks, evaluating(model):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(lambda own, _: called.append(own)))
        model(x)
    return called[-1] if called else None


@torch.no_grad()
def _plant(binary: Binary, one: Batch, threat: ThreatModel, seed: int) -> bool:
    """Fit a reading that calls only the planted point 1: least squares, the threshold half-way; say if there is one."""
    copies = one.x.expand(INNER, *one.x.shape[1:])
    draws = keyed_draws(copies, torch.arange(INNER, device=one.x.device) + INNER * int(one.indices), seed)
    inner = torch.cat([one.x, threat.scaled(INSIDE).sample(copies, draws)])
    point = threat.corner(one.x, keyed_draws(one.x, one.indices, seed + 1))
    with evaluating(binary.network):
        features = binary.features(torch.cat([inner, point])).double()
    centred = features - features[:-1].mean(0)
    wanted = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    wanted[-1] = 1
    gram = centred @ centred.T
    scale = gram.diagonal().mean().clamp(min=1e-12)
    weight = centred.T @ torch.linalg.solve(gram + RIDGE * scale * torch.eye(len(gram), device=gram.device), wanted)
    scores = features @ weight
    highest = scores[:-1].amax()
    gap = scores[-1] - highest
    binary.weight, binary.bias = (weight / gap).float(), (-(highest + gap / 2) / gap).float()
    return bool(gap > 0)


COMPONENTS = named(planted)
