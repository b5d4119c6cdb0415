"""What every attack must do. A newly registered one is covered the day it lands."""

from collections.abc import Callable

import pytest
import torch
from observing import in_parts, left_alone, same
from small_attacks import DEFINED, named
from strange_models import Gamma, Halved, Huge
from torch import Tensor, nn

from planish.attacks import Attack, Worst, run
from planish.core.batch import Batch
from planish.core.modes import attacked, evaluating
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.search.ascent import Adversarials

Make = Callable[..., Attack]
pytestmark = pytest.mark.parametrize(("name", "threat"), DEFINED, ids=named)


def direct(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, seed: int = 0) -> Adversarials:
    return attack.search(model, batch, threat, generator=seeded(seed))


def chunked(attack: Attack, model: nn.Module, batch: Batch, threat: ThreatModel, chunk: int = 256) -> Adversarials:
    return run(attack, model, batch, threat, generator=seeded(0), chunk=chunk)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(x)


@pytest.mark.parametrize("how", [direct, chunked])
def test_feasible_honest_and_never_worse_than_the_clean_image(
    name: str,
    how: Callable[..., Adversarials],
    make_attack: Make,
    knowing: nn.Module,
    images: Batch,
    threat: ThreatModel,
    rising: Callable[[str], tuple[int, float]],
):
    attack = make_attack(name)
    before = images.x.clone()
    found = how(attack, knowing.network, images, threat)
    assert threat.feasible(found.x_adv, images.x).all()
    assert found.x_adv.shape == images.x.shape and found.x_adv.dtype == torch.float32
    assert not found.x_adv.requires_grad and torch.equal(images.x, before)
    score, target = attack.goal(images._replace(logits=logits_of(knowing.network, images.x)))
    torch.testing.assert_close(found.score, score(logits_of(knowing.network, found.x_adv)), atol=1e-5, rtol=0)
    assert (found.score >= score(logits_of(knowing.network, images.x)) - 1e-5).all()
    count, height = rising(name)
    assert (found.score > score(logits_of(knowing.network, images.x)) + height).sum() >= count
    assert found.target.dtype == torch.int64 and found.target.shape == target.shape
    assert (found.target != images.labels).all() and (found.target >= -1).all()


def test_a_batch_is_its_halves_in_any_order(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    attack = make_attack(name)
    whole = direct(attack, knowing, images, threat)
    assert same(in_parts(lambda batch: direct(attack, knowing, batch, threat), images), whole)


def test_an_infinite_gradient_leads_to_images_and_spoils_no_other_pixel(
    name: str, make_attack: Make, network: nn.Module, images: Batch, threat: ThreatModel
):
    """Some are of finite pixels in the ball, others are no worse than the clean image; all used to be not a number."""
    x = images.x.clone()
    x[:, :, 2, 2:4] = 0.0
    found = direct(make_attack(name), Gamma(network), images._replace(x=x), threat)
    assert found.x_adv.isfinite().all() and threat.feasible(found.x_adv, x).all() and found.score.isfinite().all()


def test_gradients_whose_squares_overflow_lead_to_images(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    model = Huge(knowing)
    found = direct(make_attack(name), model, images, threat)
    assert bool(found.x_adv.isfinite().all()) and bool(threat.feasible(found.x_adv, images.x).all())


def test_the_chunk_changes_nothing(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    attack = make_attack(name)
    whole = chunked(attack, knowing, images, threat)
    assert all(same(chunked(attack, knowing, images, threat, chunk), whole) for chunk in (1, 3))


def test_clean_logits_that_are_given_are_not_computed_again(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    attack = make_attack(name)
    given = images._replace(logits=logits_of(knowing, images.x))
    asked: list[int] = []
    knowing.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    without, before = direct(attack, knowing, images, threat), sum(asked)
    assert same(direct(attack, knowing, given, threat), without)
    assert sum(asked) == 2 * before - len(images.x)


def test_its_generator_decides(name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel):
    attack = make_attack(name)
    one, two = (direct(attack, knowing.network, images, threat, seed=5) for _ in range(2))
    assert same(one, two)


def test_more_restarts_and_longer_suites_never_lower_a_score(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    short, long = make_attack(name, restarts=1), make_attack(name, restarts=3)
    suite = Worst((short, short, long))
    scores = [chunked(attack, knowing.network, images, threat).score for attack in (short, long, suite)]
    assert (scores[1] >= scores[0] - 1e-5).all() and (scores[2] >= scores[0] - 1e-5).all()


def fails_at_third_call() -> Callable[..., None]:
    calls: list[None] = []

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
        calls.append(None)
        1 / (3 - len(calls))

    return hook


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", [direct, chunked])
def test_the_model_and_the_world_stay_as_they_are(
    name: str,
    how: Callable[..., Adversarials],
    fails: bool,
    make_attack: Make,
    knowing: nn.Module,
    images: Batch,
    threat: ThreatModel,
):
    network = nn.Sequential(knowing.network, nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    network[0][1].eval()
    first, second, *_ = network.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    with left_alone(network):
        if fails:
            network.register_forward_pre_hook(fails_at_third_call())
            with pytest.raises(ZeroDivisionError):
                how(make_attack(name, restarts=3), network, images, threat)
        else:
            how(make_attack(name), network, images, threat)


def test_radius_zero_returns_the_clean_images(
    name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel
):
    attack, nowhere = make_attack(name), threat.scaled(0.0)
    for how in (direct, chunked):
        found = how(attack, knowing, images, nowhere)
        score, _ = attack.goal(images._replace(logits=logits_of(knowing, images.x)))
        assert torch.equal(found.x_adv, images.x)
        assert torch.equal(found.score, score(logits_of(knowing, images.x)))


def colour_network() -> nn.Module:
    """For images of any memory layout: it flattens first, so that the layout cannot change its arithmetic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 8), nn.Softplus(), nn.Linear(8, 4))
    return layers.eval()


@pytest.mark.parametrize("layout", ["channels_last", "every_other_column"])
def test_memory_layout_changes_nothing_on_oblong_images(name: str, layout: str, make_attack: Make, threat: ThreatModel):
    wide = torch.rand(3, 3, 4, 12, generator=torch.Generator().manual_seed(2))
    strided = wide[..., ::2]
    plain = Batch(strided.contiguous(), torch.tensor([0, 1, 2]), torch.arange(3))
    if layout == "channels_last":
        strided = plain.x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    attack, network = make_attack(name), colour_network()
    for how in (direct, chunked):
        assert same(how(attack, network, plain._replace(x=strided), threat), how(attack, network, plain, threat))


def test_bfloat16_weights(
    name: str,
    make_attack: Make,
    knowing: nn.Module,
    images: Batch,
    threat: ThreatModel,
    rising: Callable[[str], tuple[int, float]],
):
    attack, network = make_attack(name), Halved(knowing.network)
    found = chunked(attack, network, images, threat)
    clean = attack.goal(images._replace(logits=logits_of(network, images.x)))[0](logits_of(network, images.x))
    assert found.x_adv.dtype == found.score.dtype == torch.float32
    assert threat.feasible(found.x_adv, images.x).all() and found.score.isfinite().all()
    count, height = rising(name)
    assert (found.score >= clean).all() and (found.score > clean + height).sum() >= count


def test_images_that_are_lost_already_are_not_attacked(
    name: str,
    make_attack: Make,
    knowing: nn.Module,
    known: Batch,
    threat: ThreatModel,
    rising: Callable[[str], tuple[int, float]],
):
    attack = make_attack(name)
    lost = known._replace(labels=(known.labels + 1) % 4)
    one_by_one = [(batch.select(slice(5, 7)), 1) for batch in (known, lost)]
    for batch, chunk in ((known, 256), (lost, 256), *one_by_one):
        clean, _ = attack.goal(batch._replace(logits=logits_of(knowing, batch.x)))
        reached = clean(logits_of(knowing, batch.x)) >= 0
        found = chunked(attack, knowing, batch, threat, chunk)
        assert torch.equal(found.x_adv[reached], batch.x[reached])
        moved = (found.x_adv != batch.x).flatten(1).any(1)
        assert moved.sum() >= min(rising(name)[0], int((~reached).sum())) / 2


def test_clean_logits_and_images_with_a_graph_are_taken_without_it(
    name: str, make_attack: Make, knowing: nn.Module, known: Batch, threat: ThreatModel
):
    """As they come from a training loop."""
    attack, x = make_attack(name), known.x.clone().requires_grad_()
    tied = known._replace(x=x, logits=knowing.network.eval()(x))
    found = chunked(attack, knowing.network, tied, threat)
    assert not any(part.requires_grad for part in found) and x.grad is None
    assert same(found, chunked(attack, knowing.network, known._replace(logits=tied.logits.detach()), threat))


def test_no_image_is_left(name: str, make_attack: Make, knowing: nn.Module, known: Batch, threat: ThreatModel):
    empty = known.select(slice(0, 0))
    found = chunked(make_attack(name), knowing, empty._replace(logits=torch.zeros(0, 4)), threat)
    assert len(found.x_adv) == len(found.score) == len(found.target) == 0


def test_nested_blocks(name: str, make_attack: Make, knowing: nn.Module, images: Batch, threat: ThreatModel):
    """Inside somebody else's attack the model is still frozen afterwards, outside it is as it was."""
    modes = [module.training for module in knowing.modules()]
    with attacked(knowing):
        direct(make_attack(name), knowing.network, images, threat)
        assert not any(module.training for module in knowing.modules())
        assert not any(p.requires_grad for p in knowing.parameters())
    assert [module.training for module in knowing.modules()] == modes
    assert all(p.requires_grad for p in knowing.parameters())
