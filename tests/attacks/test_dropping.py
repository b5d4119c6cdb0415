"""`run` against a slow twin that drops nobody, looks at every iterate of every image, and decides afterwards."""

from collections.abc import Callable, Iterator

import pytest
import torch
from known_distances import right
from observing import same
from torch import Tensor, nn

from planish.attacks import Attack, Worst, components_of, run
from planish.attacks.ascents import Targeted, Untargeted
from planish.attacks.gradient import APGD, APGDT, FGSM, MIFGSM, ODIPGD, PGD, AdamPGD, MultiTargeted, RandomTargeted
from planish.core.batch import Batch
from planish.core.randomness import drawn_seed, keyed, keyed_draws, seeded
from planish.core.threat import L2, Linf, ThreatModel
from planish.models.preact_resnet import preact_resnet18
from planish.models.small_cnn import small_cnn
from planish.search.ascent import Adversarials
from planish.search.step_rules import Point

Gradient = Untargeted | Targeted
Teach = Callable[[Callable[[], nn.Module], Batch], nn.Module]
CLASSES = 4
ATTACKS: dict[str, Attack] = {
    "pgd": PGD(5, 3),
    "mi-fgsm": MIFGSM(6),
    "odi-pgd": ODIPGD(4, 2),
    "adam-pgd": AdamPGD(6, 2),
    "apgd-ce": APGD(12, 2),
    "apgd-t": APGDT(9),
    "multi-targeted": MultiTargeted(4, 2),
    "random-targeted": RandomTargeted(6, 3),
    "mixed": Worst((PGD(2, 2), Worst((MIFGSM(3), APGDT(5, 2))), FGSM())),
}


def gradient_of(objective: Callable[[Tensor], Tensor], x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N,) and the gradient of their sum."""
    leaf = x_adv.detach().requires_grad_()
    values = objective(leaf)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def start_of(attack: Gradient, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
    """The image, or a point of the ball by the image's own numbers, or two full steps further along random logits."""
    if attack.start == "image":
        return batch.x
    seed = drawn_seed(seeded(seed))
    x_adv = threat.sample(batch.x, keyed_draws(batch.x, batch.indices, seed))
    for _ in range(2 if attack.start == "diverse" else 0):
        direction = 2 * keyed(batch.indices, seed + 1, CLASSES) - 1
        _, gradient = gradient_of(lambda x, along=direction: (model(x) * along).sum(1), x_adv)
        x_adv = threat.project(x_adv + threat.radius * threat.steepest(gradient), batch.x)
    return x_adv


def iterates(attack: Gradient, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int) -> Iterator[Tensor]:
    """Every iterate of all images, the start and the last included."""
    target = attack.goal(batch)[1]
    loss = attack.loss(target) if isinstance(attack, Targeted) else attack.loss
    x_adv, state = start_of(attack, model, batch, threat, seed), attack.rule.init(batch.x, threat, attack.steps)
    for index in range(attack.steps):
        yield x_adv
        values, gradient = gradient_of(lambda x: loss(model(x), batch.labels), x_adv)
        x_adv, state = attack.rule.step(Point(index, attack.steps, batch.x, x_adv, values, gradient, threat), state)
    yield x_adv


def slow_run(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel) -> Adversarials:
    """The first iterate of the first leaf that reaches the goal, or else the best of all, image by image."""
    with torch.no_grad():
        batch = batch._replace(logits=model(batch.x))
    generator, zero = seeded(0), torch.zeros_like(batch.labels)
    attack = attack.assembled(CLASSES)
    score, target = next(components_of(attack)).goal(batch)
    best = Adversarials(batch.x.clone(), score(batch.logits), target.clone(), zero - 1, zero.clone(), zero.clone())
    for number, leaf in enumerate(components_of(attack)):
        score, target = leaf.goal(batch)
        path = list(iterates(leaf, model, batch, threat, drawn_seed(generator)))
        with torch.no_grad():
            scores = torch.stack([score(model(x_adv)) for x_adv in path])
        for row in (best.score < 0).nonzero()[:, 0].tolist():
            heights = scores[:, row].tolist()
            step = next((k for k, height in enumerate(heights) if height >= 0), heights.index(max(heights)))
            arrived = heights[step] >= 0 and step < leaf.steps
            best.passes[row] += (2 * (step + 1) if arrived else 2 * leaf.steps + 1) + 4 * (leaf.start == "diverse")
            if heights[step] > best.score[row]:
                best.x_adv[row], best.score[row], best.target[row] = path[step][row], scores[step, row], target[row]
                best.component[row], best.step[row] = number, step
    return best


def varied(expected: Adversarials) -> bool:
    """Whether images break at different moments and some hold out: else nobody outlives anybody in the batch."""
    broken = expected.score >= 0
    return len(torch.stack([expected.component, expected.step], 1)[broken].unique(dim=0)) >= 2 and not bool(
        broken.all()
    )


class Sums(nn.Module):
    """Four quadratic logits of an image's pixels, term by term: no bit of them depends on the batch."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.weight = nn.Parameter(torch.randn(CLASSES, pixels, generator=generator))
        self.middle = nn.Parameter(torch.rand(CLASSES, pixels, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        pixels, logits = x.flatten(1).unbind(1), []
        for weight, middle in zip(self.weight, self.middle, strict=True):
            total = torch.zeros_like(pixels[0])
            for pixel, w, m in zip(pixels, weight, middle, strict=True):
                away = pixel - m
                total = total + w * away * away
            logits.append(total)
        return torch.stack(logits, 1)


def noise(size: int, dtype: torch.dtype, seed: int = 4) -> Tensor:
    return torch.rand(12, 1, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labelled(model: nn.Module, x: Tensor) -> Batch:
    """The images, all of them classified correctly."""
    return right(model, x)._replace(indices=torch.arange(12) * 7 + 3)


def dropped(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, chunk: int) -> Adversarials:
    return run(attack, model, batch, threat, generator=seeded(0), chunk=chunk)


@pytest.mark.parametrize("threat", [Linf(0.16), L2(0.4)], ids=lambda threat: threat.name)
@pytest.mark.parametrize("name", ATTACKS)
def test_bit_for_bit(name: str, threat: ThreatModel):
    """Nine pixels: images lie at odd places in memory, and no two batches alike."""
    model, attack = Sums(9), ATTACKS[name]
    images = labelled(model, noise(3, torch.float32))
    expected = slow_run(attack, model, images, threat)
    assert varied(expected)
    assert all(same(dropped(attack, model, images, threat, chunk), expected) for chunk in (2, 7))


@pytest.mark.parametrize("name", ["pgd", "mixed"])
def test_looking_seldom_changes_the_passes_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    """On accelerators one looks for arrivals now and then: at most two more iterates of each leaf are paid for."""
    model, attack = Sums(9), ATTACKS[name]
    images = labelled(model, noise(3, torch.float32))
    expected = slow_run(attack, model, images, Linf(0.16))
    monkeypatch.setattr("planish.search.ascent.LOOK", {"cpu": 3})
    found = dropped(attack, model, images, Linf(0.16), 5)
    assert same(found[:5], expected[:5])
    assert (found.passes >= expected.passes).all() and (found.passes <= expected.passes + 4).all()
    assert (found.passes > expected.passes).any()


LESSONS = {"cnn": 19, "resnet": 4}
"""Seeds of the images that each network learns: those on which the attacks below end at different steps."""


@pytest.fixture(scope="module")
def networks(teach: Teach) -> dict[str, nn.Module]:
    """Networks with batch norm, in float64 and evaluation mode, that have learnt something."""
    kinds = {
        "cnn": lambda: small_cnn(classes=CLASSES, channels=1, width=4, activation="softplus"),
        "resnet": lambda: preact_resnet18(classes=CLASSES, channels=1, width=2),
    }
    labels, places = torch.arange(12) % CLASSES, torch.arange(12)
    lessons = {name: Batch(noise(8, torch.float64, seed), labels, places) for name, seed in LESSONS.items()}
    return {name: teach(kind, lessons[name]).eval() for name, kind in kinds.items()}


CASES = [("cnn", name, threat) for name in ATTACKS for threat in (Linf(0.1), L2(0.4))]
CASES += [("resnet", name, Linf(0.05)) for name in ("pgd", "mi-fgsm", "apgd-ce", "random-targeted", "mixed")]


@pytest.mark.parametrize(("kind", "name", "threat"), CASES, ids=lambda value: getattr(value, "name", value))
def test_on_networks(kind: str, name: str, threat: ThreatModel, networks: dict[str, nn.Module]):
    """Convolutions round otherwise in other batches. In float64 that decides nothing for images that break.

    Of an image that holds out it may decide which of two equal iterates is returned: PGD goes to and fro.
    """
    model, attack = networks[kind], ATTACKS[name]
    images = labelled(model, noise(8, torch.float64, LESSONS[kind]))
    expected = slow_run(attack, model, images, threat)
    assert varied(expected)
    for chunk in (1, 5, 12) if kind == "cnn" else (5, 12):
        found, broken = dropped(attack, model, images, threat, chunk), expected.score >= 0
        assert torch.equal(found.score >= 0, broken) and torch.equal(found.passes, expected.passes)
        for one, other in zip(found[2:5], expected[2:5], strict=True):
            assert torch.equal(one[broken], other[broken])
        torch.testing.assert_close(found.x_adv, expected.x_adv, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.score, expected.score, atol=1e-9, rtol=0)
