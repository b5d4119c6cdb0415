"""Attacks on linear models, where the worst image is known in closed form."""

import pytest
import torch
from known_distances import linear
from torch import Tensor, nn

from planish.attacks import Attack, Worst, run
from planish.attacks.gradient import (
    APGD,
    APGDT,
    FGSM,
    MIFGSM,
    PGD,
    AdamPGD,
    LLRUntargeted,
    MultiTargeted,
    PGDMargin,
)
from planish.core.batch import Batch
from planish.core.losses import margin
from planish.core.randomness import drawn_seed, seeded
from planish.core.threat import L2, Linf, ThreatModel

SIGNED = {
    "fgsm": FGSM(),
    "mi-fgsm": MIFGSM(5),
    "pgd": PGD(50, 1),
    "pgd-margin": PGDMargin(50, 1),
    "apgd-ce": APGD(50),
}
ADAM = {"adam-pgd": AdamPGD(20), "untargeted": LLRUntargeted(20, 1)}
THREATS = [Linf(0.05), L2(0.4)]


def middling(batch: Batch, classes: int) -> Batch:
    """Images so far from black and white that no box constraint is active."""
    return batch._replace(x=0.3 + 0.4 * batch.x, labels=batch.labels % classes)


def worst_margins(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Margin towards each wrong class plus radius * dual norm, (N, K - 1), for an inactive box."""
    weight = model[1].weight.detach()
    logits = model(batch.x).detach()
    rows = []
    for row, label in zip(logits, batch.labels.tolist(), strict=True):
        others = [other for other in range(len(weight)) if other != label]
        slope = threat.dual_norm(weight[others] - weight[label])
        rows.append(row[others] - row[label] + threat.radius * slope)
    return torch.stack(rows)


def agree(found: Tensor, expected: Tensor, atol: float = 2e-4) -> None:
    """Equal where nothing can break the image; elsewhere an attack stops as soon as it has broken it."""
    standing = expected < 0
    assert 1 <= standing.sum() < len(expected) and torch.equal(found < 0, standing)
    torch.testing.assert_close(found[standing], expected[standing], atol=atol, rtol=0)


def scores(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    return attack.search(model, batch, threat, generator=seeded(0)).score


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.name)
@pytest.mark.parametrize("name", SIGNED)
def test_two_classes_in_an_open_box(name: str, threat: ThreatModel, batch: Batch):
    model, images = linear(2), middling(batch, 2)
    found = scores(SIGNED[name], model, images, threat)
    agree(found, worst_margins(model, images, threat)[:, 0])


@pytest.mark.parametrize("name", SIGNED | ADAM)
def test_two_classes_at_the_edges_of_the_box(name: str, batch: Batch):
    model, radius = linear(2), 0.1
    x = torch.where(batch.x < 0.5, 0.2 * batch.x, 1 - 0.2 * (1 - batch.x))
    images, threat = batch._replace(x=x, labels=model(x).argmax(1)), Linf(radius)
    weight = model[1].weight.detach()
    slope = weight[1 - images.labels] - weight[images.labels]
    flat = images.x.flatten(1)
    up, down = torch.clamp(1 - flat, max=radius), -torch.clamp(flat, max=radius)
    gain = (slope * torch.where(slope > 0, up, down)).sum(1)
    assert (up < radius).any() and (down > -radius).any()
    expected = margin(model(images.x).detach(), images.labels) + gain
    agree(scores((SIGNED | ADAM)[name], model, images, threat), expected)


def own_labels(model: nn.Module, batch: Batch, classes: int) -> Batch:
    """Middling images, all of them classified correctly."""
    images = middling(batch, classes)
    return images._replace(labels=model(images.x).argmax(1))


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (MultiTargeted(20, 1).assembled(5), Linf(0.02)),
        (APGDT(50).assembled(3), Linf(0.11)),
        (APGDT(50).assembled(3), L2(0.88)),
    ],
    ids=["multi-targeted-Linf", "apgd-t-Linf", "apgd-t-L2"],
)
def test_every_target_in_turn_finds_the_best_class(attack: Attack, threat: ThreatModel, batch: Batch):
    assert isinstance(attack, Worst)
    classes = len(attack.attacks) + 1
    model = linear(classes)
    images = own_labels(model, batch, classes)
    expected = worst_margins(model, images, threat).amax(1)
    found = attack.search(model, images, threat, generator=seeded(0)).score
    agree(found, expected)


def test_adam_walks_along_signs_in_l2_too(batch: Batch):
    """Its step has one length in every pixel, so it gains radius * |g|_1 / sqrt(D) and not radius * |g|_2."""
    model, threat = linear(2), L2(0.4)
    images = own_labels(model, batch, 2)
    weight = model[1].weight.detach()
    slope = (weight[1] - weight[0]).abs().sum() / 8
    expected = margin(model(images.x).detach(), images.labels) + 0.4 * slope
    found = scores(MultiTargeted(50, 1), model, images, threat)
    standing = expected < 0
    assert standing.sum() >= 2 and (expected < worst_margins(model, images, threat)[:, 0] - 0.01).all()
    torch.testing.assert_close(found[standing], expected[standing], atol=2e-3, rtol=0)


def test_untargeted_cross_entropy_can_miss_the_best_class(batch: Batch):
    """Why targets are tried in turn: one gradient mixes the classes. No attack beats the closed form."""
    model, images, threat = linear(5), middling(batch, 5), Linf(0.05)
    exact = worst_margins(model, images, threat).amax(1)
    found = scores(FGSM(), model, images, threat)
    assert (found <= exact + 1e-5).all() and (found < exact - 1e-3).any()


def test_worst_is_the_best_of_its_parts_on_the_survivors(make_attack, knowing: nn.Module, images: Batch):
    parts = tuple(make_attack(name) for name in ("fgsm", "pgd-margin", "apgd-ce"))
    parts = (parts[0], *parts[1].assembled(4).attacks, parts[2].assembled(4).attacks[0])
    threat, network = Linf(0.1), knowing
    found = run(Worst(parts), network, images, threat, generator=seeded(4))
    generator = seeded(4)
    with torch.no_grad():
        best = margin(network.eval()(images.x), images.labels)
    for part in parts:
        alone = part.search(network, images, threat, generator=seeded(drawn_seed(generator))).score
        best = torch.where(best >= 0, best, torch.maximum(best, alone))
    assert torch.equal(found.score, best)
    assert (found.score >= 0).any() and (found.score < 0).any()
