from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.losses import cross_entropy, margin, toward
from planish.core.modes import evaluating
from planish.core.randomness import keyed_draws
from planish.core.threat import L2, Linf, ThreatModel
from planish.search import ascent
from planish.search.ascent import Aim, Score, Searched, ascend, evaluated, search
from planish.search.objectives import Objective, loss_of, objective_of
from planish.search.step_rules import Adam, AutoPGD, Momentum, Steepest, StepRule

RULES: list[StepRule] = [Steepest(0.25), Momentum(0.25), Adam(0.5), AutoPGD()]
EVERY = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
BOTH = pytest.mark.parametrize("threat", [Linf(0.06), L2(0.4)], ids=["Linf", "L2"])


class Counter:
    """An objective that counts its forwards and backwards."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.forwards, self.backwards = objective, 0, 0

    def __call__(self, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        self.forwards += 1
        values, logits = self.objective(x_adv)
        if values.requires_grad:
            values.register_hook(lambda _: setattr(self, "backwards", self.backwards + 1))
        return values, logits


def attack(model: nn.Module, batch: Batch) -> Objective:
    return objective_of(model, loss_of(cross_entropy, batch.labels))


def aimed(model: nn.Module, batch: Batch, height: Tensor | float = 0.0) -> Aim:
    """Cross entropy ascended until the margin reaches the height, one for all or (N,)."""

    def aim(rows: Tensor) -> tuple[Objective, Score]:
        labels = batch.labels[rows]
        wanted = height[rows] if torch.is_tensor(height) else height
        return attack(model, batch.select(rows)), lambda logits: margin(logits, labels) - wanted

    return aim


def staggered(model: nn.Module, batch: Batch, rule: StepRule) -> Tensor:
    """Heights (N,) between the clean margin and more than ten steps reach: images arrive at various times or never."""
    clean = margin(model(batch.x), batch.labels).detach()
    best = search(aimed(model, batch, 100.0), batch.x, Linf(0.2), rule, 10).score + 100
    return clean + torch.linspace(0.2, 1.5, len(clean), dtype=clean.dtype) * (best - clean)


def everyone(objective: Objective, score: Score) -> Aim:
    """An aim for objectives that do not know rows: nobody may leave the batch."""
    return lambda rows: (objective, score)


@EVERY
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_passes(rule: StepRule, steps: int, smooth: nn.Module, batch: Batch):
    counter = Counter(attack(smooth, batch))
    ascend(counter, batch.x.double(), Linf(0.1), rule, steps)
    assert (counter.forwards, counter.backwards) == (steps, steps)
    counter = Counter(attack(smooth, batch))
    never = everyone(counter, lambda logits: margin(logits, batch.labels) - 100)
    found = search(never, batch.x.double(), Linf(0.1), rule, steps)
    assert (counter.forwards, counter.backwards) == (steps + 1, steps)
    assert found.passes.tolist() == [2 * steps + 1] * len(batch.x)


@EVERY
@BOTH
def test_every_point_is_feasible(rule: StepRule, threat: ThreatModel, model: nn.Module, batch: Batch):
    points: list[Tensor] = []
    objective = attack(model, batch)
    start = threat.corner(batch.x, keyed_draws(batch.x, batch.indices, 0))

    def watched(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        points.append(x_adv.detach())
        return objective(x_adv)

    points.append(ascend(watched, batch.x, threat, rule, 6, start=start))
    assert len(points) == 7 and all(threat.feasible(point, batch.x).all() for point in points)


def scripted(heights: list[float]) -> tuple[Objective, Callable[[Tensor], Tensor]]:
    """A score that takes these heights one after the other, while the objective always points right."""
    height = iter(heights)

    def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        return x_adv.flatten(1).sum(1), torch.full((len(x_adv), 1), next(height))

    return objective, lambda logits: logits[:, 0]


@pytest.mark.parametrize("best", [0, 2, 4])
def test_the_best_iterate_may_be_the_start_and_the_last(best: int):
    heights = [-2.0] * 5
    heights[best] = -1.0
    objective, score = scripted(heights)
    found = search(everyone(objective, score), torch.full((2, 1, 1, 1), 0.4), Linf(0.4), Steepest(0.25), 4)
    torch.testing.assert_close(found.x_adv.flatten(), torch.full((2,), 0.4 + 0.1 * best))
    assert found.score.tolist() == [-1.0, -1.0] and found.step.tolist() == [best, best]


def counting_up(moments: Tensor, height: float) -> Aim:
    """Image i has its best context, of this height, at iterate moments[i]; before and after it is one lower."""

    def aim(rows: Tensor) -> tuple[Objective, Score]:
        def objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
            moved = ((x_adv - 0.4).flatten(1).sum(1) / 0.1).round().detach()
            return x_adv.flatten(1).sum(1), (moved == moments[rows]).float()[:, None] - 1 + height

        return objective, lambda logits: logits[:, 0]

    return aim


def test_the_best_is_per_example_and_scored_by_the_logits():
    x, moments = torch.full((3, 1, 1, 1), 0.4), torch.arange(3)
    found = search(counting_up(moments, -0.5), x, Linf(0.4), Steepest(0.25), 4)
    torch.testing.assert_close(found.x_adv.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert torch.equal(found.step, moments) and found.passes.tolist() == [9, 9, 9]
    objective, _ = counting_up(moments, -0.5)(moments)
    torch.testing.assert_close(ascend(objective, x, Linf(0.4), Steepest(0.25), 4).flatten(), torch.full((3,), 0.8))


def test_an_image_that_has_arrived_costs_nothing_more():
    x, moments = torch.full((4, 1, 1, 1), 0.4), torch.tensor([3, 0, 2, 9])
    found = search(counting_up(moments, 0.5), x, Linf(0.4), Steepest(0.25), 4)
    assert found.score.tolist() == [0.5, 0.5, 0.5, -0.5] and found.step.tolist() == [3, 0, 2, 0]
    assert found.passes.tolist() == [8, 2, 6, 9]


@EVERY
def test_who_leaves_the_batch_changes_nothing_for_the_others(rule: StepRule, model: nn.Module, batch: Batch):
    model = model.double().eval()
    whole = batch._replace(x=batch.x.double())
    heights = staggered(model, whole, rule)
    together = search(aimed(model, whole, heights), whole.x, Linf(0.2), rule, 10)
    assert (together.score >= 0).sum() >= 1 and len(together.passes.unique()) >= 2
    for row in range(len(whole.x)):
        part = whole.select(slice(row, row + 1))
        single = search(aimed(model, part, heights[row : row + 1]), part.x, Linf(0.2), rule, 10)
        for one, all_ in zip(single, together, strict=True):
            torch.testing.assert_close(one[0], all_[row], rtol=0, atol=1e-9)


def test_looking_rarely_for_arrivals_changes_only_the_passes(
    model: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    model.eval()
    heights = staggered(model, batch, Steepest(0.05))
    every = search(aimed(model, batch, heights), batch.x, Linf(0.2), Steepest(0.05), 10)
    monkeypatch.setitem(ascent.LOOK, "cpu", 4)
    rarely = search(aimed(model, batch, heights), batch.x, Linf(0.2), Steepest(0.05), 10)
    assert torch.equal(every.step, rarely.step) and len(every.step.unique()) >= 4
    assert (rarely.passes >= every.passes).all() and not torch.equal(rarely.passes, every.passes)
    torch.testing.assert_close(every.x_adv, rarely.x_adv)


@pytest.mark.parametrize("height", [-0.5, 0.5])
def test_a_clean_image_of_known_score_must_be_beaten(height: float):
    """Image 0 is best where it stands, image 1 a step later, and image 2's clean score is above all that comes."""
    x, moments = torch.full((3, 1, 1, 1), 0.4), torch.arange(3)
    clean = torch.tensor([height, height - 1, 5.0])
    found = search(counting_up(moments, height), x, Linf(0.4), Steepest(0.25), 4, clean=clean)
    assert found.step.tolist() == [-1, 1, -1] and found.score.tolist() == [height, height, 5.0]
    torch.testing.assert_close(found.x_adv.flatten(), torch.tensor([0.4, 0.5, 0.4]))
    assert found.passes.tolist() == ([9, 9, 2] if height < 0 else [2, 4, 2])
    elsewhere = search(counting_up(moments, height), x, Linf(0.4), Steepest(0.25), 4, start=x + 0.1, clean=clean)
    assert elsewhere.step.tolist() == [-1, 0, -1]


@EVERY
def test_the_score_belongs_to_the_point(rule: StepRule, smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    found = search(aimed(smooth, batch, 100.0), x, Linf(0.2), rule, 8)
    torch.testing.assert_close(found.score + 100, margin(smooth(found.x_adv), batch.labels))
    assert (found.score + 100 > margin(smooth(x), batch.labels) + 1e-3).all()


def test_an_objective_without_numbers_moves_nothing():
    x = torch.full((2, 1, 1, 1), 0.4)
    nothing = everyone(lambda x_adv: (x_adv.flatten(1).sum(1) * torch.nan, x_adv * torch.nan), lambda z: z.flatten())
    found = search(nothing, x, Linf(0.1), Steepest(0.25), 3)
    assert torch.equal(found.x_adv, x) and (found.score == -torch.inf).all()


@EVERY
def test_nothing_of_the_model_changes(rule: StepRule, model: nn.Module, batch: Batch):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = batch.x.clone()
    with evaluating(model):
        found = search(aimed(model, batch), batch.x, Linf(0.1), rule, 3)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not found.x_adv.requires_grad and not found.score.requires_grad
    assert batch.x.grad is None and torch.equal(batch.x, x)


@EVERY
@BOTH
def test_a_batch_is_its_halves(rule: StepRule, threat: ThreatModel, model: nn.Module, batch: Batch):
    model = model.double().eval()

    def run(part: Batch) -> Searched:
        start = threat.sample(part.x, keyed_draws(part.x, part.indices, 5))
        return search(aimed(model, part), part.x, threat, rule, 12, start=start)

    whole = batch._replace(x=batch.x.double())
    cut = [run(whole.select(slice(0, 3))), run(whole.select(slice(3, 8)))]
    for together, parts in zip(run(whole), zip(*cut, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(parts), rtol=0, atol=1e-9)


@BOTH
@pytest.mark.parametrize("target", [0, 1, 2])
def test_one_steepest_step_solves_a_linear_model(threat: ThreatModel, target: int, linear: nn.Module):
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45
    labels = torch.full((5,), 3)
    objective = objective_of(linear, loss_of(toward(torch.full((5,), target)), labels))
    found = ascend(objective, x, threat, Steepest(1.0), 1)
    weight = linear[1].weight[target] - linear[1].weight[3]
    dual = weight.abs().sum() if isinstance(threat, Linf) else weight.norm()
    rise = objective(found)[0] - objective(x)[0]
    torch.testing.assert_close(rise, (threat.radius * dual).expand(5), rtol=1e-4, atol=1e-5)


def test_it_works_under_no_grad_and_from_a_start(smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    start = Linf(0.1).corner(x, keyed_draws(x, batch.indices, 1))
    with torch.no_grad():
        inside = ascend(attack(smooth, batch), x, Linf(0.1), Steepest(0.2), 3, start=start)
    assert torch.equal(inside, ascend(attack(smooth, batch), x, Linf(0.1), Steepest(0.2), 3, start=start))
    assert torch.equal(ascend(attack(smooth, batch), x, Linf(0.1), Steepest(0.2), 0, start=start), start)


def test_evaluated_is_the_gradient_of_the_sum(smooth: nn.Module, batch: Batch):
    x = batch.x.double()
    values, logits, gradient = evaluated(attack(smooth, batch), x)
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(smooth(leaf), batch.labels, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(values.sum(), loss.detach())
    assert not (values.requires_grad or logits.requires_grad or gradient.requires_grad)


@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_infinite_entries_are_as_long_as_the_longest_finite_one(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ascent, "AT_ONCE", devices)
    nan, inf = torch.nan, torch.inf
    given = torch.tensor([[1.0, -3.0, inf], [-inf, inf, 0.0], [nan, 2.0, -inf], [1.0, 2.0, 3.0]])
    expected = torch.tensor([[1.0, -3.0, 3.0], [-1.0, 1.0, 0.0], [0.0, 2.0, -2.0], [1.0, 2.0, 3.0]])
    leaf = torch.zeros(4, 3)
    found = ascent.evaluated(lambda x: ((x * given).sum(1), x), leaf)[2]
    assert torch.equal(found, expected)
    assert torch.equal(ascent.evaluated(lambda x: ((x * expected).sum(1), x), leaf)[2], expected)
