"""Which class a targeted attack aims at, and when it has succeeded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.attacks import Worst, components_of, run
from planish.attacks.ascents import LeastLikely, RandomTarget, Ranked, Targets
from planish.attacks.gradient import APGDT, PGD, LeastLikelyTargeted, MultiTargeted, RandomTargeted
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.randomness import seeded
from planish.core.threat import Linf
from planish.evaluation.evaluate import evaluate_steps
from planish.registry import make


def batch_of(logits: list[list[float]], labels: list[int]) -> Batch:
    count = len(labels)
    return Batch(torch.zeros(count, 1, 2, 2), torch.tensor(labels), torch.arange(count), torch.tensor(logits))


LOGITS = [[3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0], [-5.0, -9.0, -1.0, -9.0]]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Ranked(1), [2, 0, 2]),
        (Ranked(2), [1, 2, 1]),  # a tie goes to the lower class
        (Ranked(3), [3, 3, 3]),
        (LeastLikely(), [3, 3, 1]),
    ],
)
def test_classes_by_their_clean_logit(targets: Targets, expected: list[int]):
    assert targets(batch_of(LOGITS, [0, 1, 0])).tolist() == expected


def test_the_least_likely_class_is_never_the_true_one():
    assert LeastLikely()(batch_of(LOGITS, [3, 3, 1])).tolist() == [1, 1, 3]


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_a_rank_that_does_not_exist(rank: int):
    with pytest.raises(BadInput, match=rf"target rank {rank} does not exist with 4 classes"):
        Ranked(rank)(batch_of(LOGITS, [0, 1, 0]))


def many(count: int, classes: int) -> Batch:
    x, labels = torch.zeros(count, 1, 2, 2), torch.arange(count) % classes
    return Batch(x, labels, torch.arange(count) * 7, torch.zeros(count, classes))


def test_random_targets_are_uniform_over_the_wrong_classes():
    classes, batch = 5, many(4000, 5)
    target = RandomTarget(3)(batch)
    assert (target != batch.labels).all() and target.min() >= 0 and target.max() < classes
    offset = torch.bincount((target - batch.labels) % classes, minlength=classes)
    assert offset[0] == 0
    expected, deviation = 1000, (4000 * 0.25 * 0.75) ** 0.5
    assert ((offset[1:] - expected).abs() < 4 * deviation).all()


def test_random_targets_depend_on_seed_and_index_alone():
    batch, targets = many(60, 4), RandomTarget(1)
    whole = targets(batch)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([targets(batch.select(rows)) for rows in order.split([7, 53])]), whole[order])
    assert not torch.equal(RandomTarget(2)(batch), whole)
    with_two = many(60, 2)
    assert torch.equal(RandomTarget(1)(with_two), 1 - with_two.labels)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_of_random_targets_that_is_none(seed: int):
    """The larger ones were an OverflowError once the attack ran."""
    with pytest.raises(BadInput, match=f"seed must be from 0 to 9223372036854775807, not {seed}"):
        RandomTargeted(seed=seed)


def test_every_restart_aims_at_the_same_random_class(network: nn.Module, images: Batch):
    attack = RandomTargeted(2, 3).assembled(4)
    assert isinstance(attack, Worst) and len(set(attack.attacks)) == 1
    aimed = []
    for part in components_of(attack):
        aimed.append(part.search(network, images, Linf(0.1), generator=seeded(len(aimed))).target)
    assert all(torch.equal(target, aimed[0]) for target in aimed)


@pytest.fixture
def network(knowing: nn.Module) -> nn.Module:
    return knowing.network


def predicted(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x).argmax(1)


@pytest.mark.parametrize(("kind", "radius"), [(RandomTargeted, 0.13), (LeastLikelyTargeted, 0.2)])
def test_reaching_is_only_the_target(kind: Callable[..., Worst], radius: float, network: nn.Module, images: Batch):
    found = run(kind(15, 2), network, images, Linf(radius), generator=seeded(0))
    reached = predicted(network, found.x_adv) == found.target
    assert torch.equal(found.score >= 0, reached)
    assert reached.any() and not reached.all()


def test_success_rate_of_a_targeted_attack(network: nn.Module, images: Batch):
    *_, judged = evaluate_steps(network, images, threat=Linf(0.13), attacks={"random-targeted": RandomTargeted(15, 2)})
    record = judged.evaluation
    column, rate = record.columns[0], record.success_rate("random-targeted")
    tried = column.attempted
    hits = (predicted(network, judged.x_adv).numpy() == column.target)[tried].sum()
    assert (rate.hits, rate.total) == (hits, record.correct().sum()) and 0 < rate.hits < rate.total
    assert (column.target[~tried] == -1).all() and (column.target[tried] >= 0).all()


def test_every_wrong_class_is_tried_once_per_restart():
    ranks = [part.targets.rank for part in components_of(MultiTargeted(3, 2).assembled(5))]
    assert ranks == [1, 2, 3, 4] * 2
    assert [part.targets.rank for part in components_of(MultiTargeted(3, 1, targets=2).assembled(10))] == [1, 2]
    assert [part.targets.rank for part in components_of(APGDT(3).assembled(10))] == list(range(1, 10))
    assert len(list(components_of(APGDT(3).assembled(3)))) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd-0", "steps must be at least 1, got 0"),
        ("mi-fgsm-0", "steps must be at least 1, got 0"),
        ("pgd-5-0", "restarts must be at least 1, got 0"),
        ("apgd-t-5-0", "targets must be at least 1, got 0"),
        ("multi-targeted-5-0", "restarts must be at least 1, got 0"),
        ("pgd-5-1-2-3", "'pgd-5-1-2-3' has more numbers than attack 'pgd' takes"),
        ("pdg-5", "unknown attack 'pdg-5'. Did you mean 'pgd'?"),
    ],
)
def test_names_that_make_no_attack(name: str, message: str):
    with pytest.raises(BadInput) as raised:
        make("attacks", name, {})
    assert str(raised.value).startswith(message)


def test_a_name_with_numbers_is_the_same_attack():
    assert make("attacks", "pgd-5-2", {}) == PGD(steps=5, restarts=2)
    assert make("attacks", "multi-targeted-7-2", {"targets": 1}) == MultiTargeted(7, 2, targets=1)
    with pytest.raises(BadInput, match="targets must be at least 1"):
        MultiTargeted(7, targets=0)
