"""A radius for each image or pixel, images of 8 bits, and targets that are given."""

from typing import Any

import numpy as np
import pytest
import torch
from small_attacks import DEFINED, named
from torch import Tensor, nn

from planish import L2, BadInput, Batch, Linf, attacks, audit, evaluate, minimum_distance
from planish.attacks import Attack, ByDistance, Within, Worst, run
from planish.attacks.ascents import Ranked, Targeted
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.core.weighted import Weighted
from planish.search.step_rules import COSINE_MOMENTUM

RADII = torch.tensor([0.02, 0.05, 0.1, 0.03, 0.08, 0.0, 0.06, 0.1])
SOME = ("pgd", "apgd-t", "mi-fgsm", "smoothed", "square", "noise")
IN_BALLS = [pair for pair in DEFINED if pair[0] in SOME and pair[1].name in ("Linf", "L2")]


def eight_bit(images: Batch) -> Batch:
    return images._replace(x=(255 * images.x).round() / 255)


@pytest.mark.parametrize(("name", "threat"), IN_BALLS, ids=named)
def test_a_radius_for_each_image_is_as_many_runs(
    name: str, threat: ThreatModel, make_attack: Any, network: nn.Module, images: Batch
):
    """Image by image what a run with its own radius finds, in any chunks; APGD-T's halvings follow the last bits, and
    in L2 Square counts what its windows may spend without the weights."""
    attack, scale = make_attack(name), 6.0 if threat.name == "L2" else 1.0
    own = Weighted.of_radii(threat.name, scale * RADII).among(images.indices)
    found = run(attack, network, images, own, generator=seeded(3), chunk=3)
    assert own.feasible(found.x_adv, images.x).all()
    for row in range(8):
        alone = type(threat)(scale * float(RADII[row]))
        one = run(attack, network, images.select(slice(row, row + 1)), alone, generator=seeded(3))
        if (name, threat.name) not in (("apgd-t", "Linf"), ("square", "L2")):
            torch.testing.assert_close(found.x_adv[row : row + 1], one.x_adv, atol=2e-5, rtol=0)
        torch.testing.assert_close(found.score[row : row + 1], one.score, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_radii_of_a_thousandth_of_the_largest_are_kept_to(norm: str, network: nn.Module, images: Batch):
    """A ratio by a small weight magnifies the rounding of float32, which once was taken for leaving the ball."""
    radii = torch.full((8, 8), 0.0005, requires_grad=True) + 0.5 * (torch.arange(64).view(8, 8) == 0)
    record = evaluate(network, images, threat=(norm, radii), attacks="pgd-5-1,fgsm")
    moved = np.abs(record.x_adv - images.x.numpy())
    assert (moved <= radii.detach().numpy() + 2e-6).all() and moved.max() > 0.4
    own = Weighted.of_radii(norm, radii)
    outside = images.x + 1.05 * torch.where(images.x < 0.5, 1, -1) * radii.detach()
    assert not own.feasible(outside, images.x).any()


def test_autoattack_takes_radii_of_each_image(network: nn.Module, images: Batch):
    found = attacks.AutoAttack()(network, images.x[:2], images.labels[:2], ("Linf", torch.tensor([0.0, 0.3])))
    assert found.success.tolist() == [False, True]


class Tilted(nn.Module):
    """Two classes, linear in the pixels: the loss rises by slope . delta."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, x: Tensor) -> Tensor:
        height = (x * self.slope).flatten(1).sum(1)
        return torch.stack([10 - height, height - 10], 1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_mask_on_a_linear_model(norm: str):
    """The best perturbation of a weighted ball is known: the loss rises by the dual norm; no other pixel moves."""
    generator = torch.Generator().manual_seed(0)
    radii = torch.rand(3, 6, 6, generator=generator) * 0.2 * (torch.arange(6) < 3)
    slope = torch.randn(3, 6, 6, generator=generator)
    x = 0.4 + 0.2 * torch.rand(4, 3, 6, 6, generator=generator)
    model, threat = Tilted(slope), Weighted.of_radii(norm, radii)
    found = attacks.PGD(steps=40, restarts=1)(model, x, torch.zeros(4).long(), (norm, radii))
    rise = ((found.x_adv - x) * slope).flatten(1).sum(1)
    largest = (radii * slope).flatten()
    best = largest.abs().sum() if norm == "Linf" else largest.norm()
    torch.testing.assert_close(rise, best.expand(4).detach(), rtol=0.01, atol=0)
    torch.testing.assert_close(threat.dual_norm(slope[None]) * threat.radius, best[None].detach())
    assert torch.equal(found.x_adv[..., 3:], x[..., 3:])


def test_masks_of_each_image_in_an_evaluation(network: nn.Module, images: Batch):
    """Parts of suites, which choose classes by distance, ask for no gradient or measure; the record says the radii."""
    radii = 0.3 * (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3)
    near = Worst((ByDistance(), *(Targeted(COSINE_MOMENTUM, 5, Ranked(rank)) for rank in (1, 2))))
    parts = {"near": near, "fab-t": Within(attacks.FABT(6, 2)), "square": attacks.Square(40), "noise": attacks.Noise(5)}
    record = evaluate(network, images, threat=("Linf", radii), attacks=parts)
    moved = torch.from_numpy(record.x_adv) - images.x
    assert 0 < int(record.survivors().sum()) < 7 and bool((moved.abs() <= radii + 1e-6).all())
    facts = record.meta["threat"]
    assert (
        facts["radius"] == pytest.approx(0.3)
        and facts["radii"]["least"] == 0
        and "radius of its own" in str(record.remarks())
    )
    same = evaluate(network, images, threat=("Linf", np.full((1, 8, 8), 0.05, np.float32)), attacks="pgd-5-1")
    plain = evaluate(network, images, threat=Linf(0.05), attacks="pgd-5-1")
    np.testing.assert_allclose(same.columns[0].margin, plain.columns[0].margin, atol=1e-4)


def test_radii_that_do_not_fit_are_said_in_a_line(network: nn.Module, images: Batch):
    pgd = attacks.PGD(2, 1)
    with pytest.raises(BadInput, match="there are radii for 5 images, and 8 images"):
        pgd(network, images, threat=("Linf", torch.full((5,), 0.1)))
    with pytest.raises(BadInput, match="do not fit images of shape"):
        pgd(network, images, threat=("Linf", torch.full((3, 8, 8), 0.1)))
    with pytest.raises(BadInput, match="finite and not negative"):
        pgd(network, images, threat=("Linf", torch.tensor([0.1, -0.1])))
    for call in (
        lambda: audit(network, images, threat=("Linf", RADII)),
        lambda: minimum_distance(network, images, norm=("L2", RADII)),
    ):
        with pytest.raises(BadInput, match="give one number here"):
            call()


@pytest.mark.parametrize(("name", "threat"), DEFINED, ids=named)
def test_images_of_8_bits(name: str, threat: ThreatModel, make_attack: Any, network: nn.Module, images: Batch):
    """What every attack returns is a file's image, in the ball, and it is what was judged."""
    images = eight_bit(images)
    own = type(threat)(threat.radius, levels=256)
    found = run(make_attack(name), network, images, own, generator=seeded(1))
    as_file = (255 * found.x_adv).round().to(torch.uint8)
    assert torch.equal(found.x_adv, as_file.float() / 255)
    assert own.feasible(found.x_adv, images.x).all() and threat.feasible(found.x_adv, images.x).all()
    with torch.no_grad():
        wrong = network(as_file.float() / 255).argmax(1) != images.labels
    assert bool((wrong | (found.score < 0) | (found.target >= 0)).all())


def test_distances_of_8_bits_are_refused(network: nn.Module, images: Batch):
    """A distance attack by itself returned images between the levels; evaluate brings them to levels."""
    images, own, closest = eight_bit(images), Linf(0.2, levels=256), attacks.Closest(5)
    for call in (
        lambda: closest(network, images, threat=own),
        lambda: minimum_distance(network, images, norm=own, attack=closest),
    ):
        with pytest.raises(BadInput, match="does not keep images to 256 levels: leave levels out, or give the attack"):
            call()
    found = torch.from_numpy(evaluate(network, images, threat=own, attacks=closest).x_adv)
    assert own.feasible(found, images.x).all() and not torch.equal(found, images.x)


def test_rounding_keeps_what_can_be_kept(network: nn.Module, images: Batch):
    """Rounded inside the search nearly as many images break as unrounded, and more than by rounding afterwards."""
    images = eight_bit(images)
    attack: Attack = attacks.APGD(20)
    for threat in (Linf(33.6 / 255), L2(1.1)):
        fine = run(attack, network, images, threat, generator=seeded(0))
        own = type(threat)(threat.radius, levels=256)
        rounded = run(attack, network, images, own, generator=seeded(0))
        assert int((rounded.score >= 0).sum()) >= int((fine.score >= 0).sum()) - 1 > 1
    assert Linf(7.6 / 255, levels=256).presented(images.x + 7.6 / 255, images.x).sub(images.x).amax() <= 7.001 / 255
    with pytest.raises(BadInput, match="have not 256 levels"):
        attack(network, images.x * 0.999, images.labels, Linf(0.1, levels=256))
    with pytest.raises(BadInput, match="levels must be at least 2"):
        Linf(0.1, levels=1)


def test_given_targets(network: nn.Module, images: Batch):
    """Images are driven into the classes given, by index; without any, into the likeliest wrong ones."""
    targets = (images.labels + 2) % 4
    attack = attacks.GivenTargeted(20, 1)
    found = attack(network, Batch(images.x, images.labels, targets=targets), threat=Linf(0.4))
    assert found.success.sum() > 5
    assert torch.equal(network(found.x_adv).argmax(1)[found.success], targets[found.success])
    record = evaluate(
        network, Batch(images.x, images.labels, targets=targets), threat=Linf(0.4), attacks="targeted-20-1"
    )
    tried = record.columns[0].attempted
    assert record.columns[0].target[tried].tolist() == targets[torch.from_numpy(tried)].tolist()
    assert record.success_rate("targeted-20-1").value > 0.6
    likely = attack(network, images.x, images.labels, Linf(0.4))
    assert likely.success.sum() > 6
    for wrong, told in (
        ([9] * 8, "targets lie in 9..9"),
        ([1] * 3, "one class for each of 8 images"),
        ([0.5] * 8, "whole numbers"),
    ):
        with pytest.raises(BadInput, match=told):
            attack(network, Batch(images.x, images.labels, targets=torch.tensor(wrong)), threat=Linf(0.1))


def test_a_target_that_is_the_label_is_refused(network: nn.Module, images: Batch):
    """It was reached without a pass, every image stood, and the success rate counted those that were right."""
    targets = (images.labels + 2) % 4
    targets[[3, 5]] = images.labels[[3, 5]]
    given = images._replace(targets=targets, indices=torch.arange(8) + 100)
    told = rf"image 103 is to be driven to class {int(targets[3])}, which is its own label: give it another class"
    with pytest.raises(BadInput, match=told):
        attacks.GivenTargeted(2, 1)(network, given, threat=Linf(0.1))
    with pytest.raises(BadInput, match=told):
        evaluate(network, given, threat=Linf(0.1), attacks="targeted-2-1")


def test_a_mask_alone_is_no_radius(network: nn.Module, images: Batch):
    """Issue: True was a radius of 1, all pixels there could take any value."""
    with pytest.raises(BadInput, match="how far: give the mask times a radius"):
        evaluate(network, images, threat=("Linf", torch.ones(8, 8, dtype=torch.bool)), attacks="fgsm")
