"""The inner loops of everything: maximise an objective over a ball with a step rule.

`ascend` is training's: the last iterate. `search` is evaluation's: the same steps, but every iterate is looked at, and
an image leaves the batch with the first iterate that reaches its goal. `guess` asks for no gradient.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from planish.core.batch import Batch, Rows, per_image, pixels
from planish.core.footprint import in_parts
from planish.core.losses import margin
from planish.core.threat import ThreatModel
from planish.core.words import number_of
from planish.search.objectives import Objective
from planish.search.step_rules import Point, StepRule

Score = Callable[[Tensor], Tensor]
"""Logits (N, K) -> (N,), 0 or more iff an attack has reached its goal."""
Propose = Callable[[Batch, Tensor, int], Tensor]
"""The images (n, ...) that are still searched, the best candidate of each so far, the query from 0 -> candidates."""
Aim = Callable[[Rows], tuple[Objective, Score]]
"""The rows of a batch that are still searched -> what they ascend, and whether they have arrived."""
LOOK = {"cpu": 1}
"""Iterates between two looks for images that have arrived. Elsewhere `LOOK_ACCELERATED`: a look makes the host wait."""
LOOK_ACCELERATED = 4
AT_ONCE = ("cpu",)
"""Devices that answer a question at once. Others have the host wait for all that they were given to do."""


class Searched(NamedTuple):
    """What a search found; all (N, ...).

    x_adv: the first iterate that reaches the goal, or the one of the largest score; without a graph. score: (N,) of
    x_adv. step: (N,) int64, which iterate that was; 0 is the start, -1 = none, x_adv is the clean image that none beat.
    passes: (N,) int64, forwards and backwards spent.
    """

    x_adv: Tensor
    score: Tensor
    step: Tensor
    passes: Tensor


class Highest(NamedTuple):
    """What an ascent met.

    value: (N,) the largest value of any iterate, the start and the last included: the maximum is not smaller. x_adv:
    (N, ...) where that was. passes: (N,) int64, 2 steps + 1.
    """

    value: Tensor
    x_adv: Tensor
    passes: Tensor


def evaluated(objective: Objective, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, logits and the gradient of the values' sum at x_adv, without a graph.

    The gradient is 0 where the model cuts its output off from its input, and where it is not a number; where it is
    infinite, as that of a square root at 0, it is as long as the longest finite entry of its image.
    """
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        values, logits = objective(leaf)
        if not values.requires_grad:
            return values, logits, torch.zeros_like(leaf)
        # given a gradient for each value, PyTorch would load its compiler: 0.4 s of every command
        (gradient,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
    return values.detach(), logits.detach(), _finite(gradient)


def _finite(gradient: Tensor) -> Tensor:
    """Return the gradient (N, ...) in finite numbers. Its sum shows if it is, where that can be asked for."""
    if gradient.device.type in AT_ONCE and math.isfinite(gradient.sum()):
        return gradient
    known = gradient.nan_to_num(0.0, 0.0, 0.0)
    longest = known.abs().amax(pixels(known))
    longest = per_image(longest.where(longest > 0, 1.0), known)
    return torch.where(gradient.isinf(), longest.copysign(gradient), known)


def ascend(
    objective: Objective, x: Tensor, threat: ThreatModel, rule: StepRule, steps: int, *, start: Tensor | None = None
) -> Tensor:
    """Maximise the objective over the threat's ball round x and return the last iterate, without a graph.

    x, start: (N, ...); the start is x unless given. Costs `steps` forwards and backwards. Each example goes its own
    way: nothing is shared across the batch.
    """
    x_adv = x if start is None else start
    state = rule.init(x, threat, steps)
    for index in range(steps):
        values, _, gradient = evaluated(objective, x_adv)
        x_adv, state = rule.step(Point(index, steps, x, x_adv, values, gradient, threat), state)
        x_adv = x_adv.detach()
    return x_adv


def highest(
    objective: Objective, x: Tensor, threat: ThreatModel, rule: StepRule, steps: int, *, start: Tensor | None = None
) -> Highest:
    """Ascend the objective in the ball round x (N, ...) and return the best iterate of each image, not the last."""
    best: list[Tensor] = []

    def remembering(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = objective(x_adv)
        seen, where = values.detach(), x_adv.detach()
        if best:
            better = seen > best[0]
            where = torch.where(per_image(better, where), where, best[1])
            seen = torch.where(better, seen, best[0])
        best[:] = seen, where
        return values, logits

    last = ascend(remembering, x, threat, rule, steps, start=start)
    with torch.no_grad():
        remembering(last)
    value, place = best
    return Highest(value, place, torch.full((len(x),), 2 * steps + 1, dtype=torch.int64, device=x.device))


def search(
    aim: Aim,
    x: Tensor,
    threat: ThreatModel,
    rule: StepRule,
    steps: int,
    *,
    start: Tensor | None = None,
    clean: Tensor | None = None,
) -> Searched:
    """Ascend until the goal is reached: each image's first iterate of score 0 or more, or else its best.

    The start and the last iterate count. An image that has arrived costs nothing more: the batch shrinks. Whether it
    has is seen by the forward that the next gradient needs, so that `steps` steps are steps + 1 forwards and `steps`
    backwards for an image that holds out. Where others arrive changes nothing for it.
    clean: (N,) the score of x, where it is known: an iterate must beat it to be kept. Where the threat has levels, the
    model is shown each iterate rounded, and that is what is kept; the ascent goes on from the iterate itself.
    """
    best = here = _initial(x, clean)
    rows = torch.arange(len(x), device=x.device)
    objective, score = aim(slice(None))
    x_adv, state = x if start is None else start, rule.init(x, threat, steps)
    for index in range(steps):
        shown = threat.presented(x_adv, x)
        values, logits, gradient = evaluated(objective, shown)
        if index == 0 and start is None and clean is not None:
            here = here._replace(passes=here.passes + 2)
        else:
            here = _update_best(here, shown, score(logits), index, passes=2)
        if _looks(x, index):
            going = (here.score < 0).nonzero().squeeze(1)
            if len(going) < len(rows):
                best = _scatter(best, rows, here)
                left = (x, x_adv, values, gradient, state, rows, here)
                x, x_adv, values, gradient, state, rows, here = chosen(left, going)
                objective, score = aim(rows)
                threat = threat.select(going)
            if len(rows) == 0:
                return best
        x_adv, state = rule.step(Point(index, steps, x, x_adv, values, gradient, threat), state)
        x_adv = x_adv.detach()
    shown = threat.presented(x_adv, x)
    with torch.no_grad():
        here = _update_best(here, shown, score(objective(shown)[1]), steps, passes=1)
    return _scatter(best, rows, here)


@torch.no_grad()
def guess(propose: Propose, model: nn.Module, batch: Batch, queries: int, *, start: Searched | None = None) -> Searched:
    """Ask the model about one candidate of each image after another: the first misclassified, or the best by margin.

    A forward for each query of an image that is not broken, by batch.logits to begin with; steps count from 1. A
    candidate of a smaller margin is forgotten; the first is the one to beat, or what the search starts from, and the
    clean image stays if it is as good as the best.
    """
    best = clean = _initial(batch.x, margin(batch.clean_logits, batch.labels))
    rows = (clean.score < 0).nonzero().squeeze(1)
    batch = Batch(batch.x.detach(), batch.labels, batch.indices.to(batch.x.device)).select(rows)
    here = _initial(batch.x) if start is None else chosen(start, rows)
    for query in range(queries if len(rows) else 0):
        x_adv = propose(batch, here.x_adv, query)
        here = _update_best(here, x_adv, margin(model(x_adv), batch.labels), query + 1, passes=1)
        if _looks(batch.x, query):
            going = (here.score < 0).nonzero().squeeze(1)
            if len(going) < len(rows):
                best = _scatter(best, rows, here)
                batch, rows, here = batch.select(going), rows[going], chosen(here, going)
            if len(rows) == 0:
                break
    return _better(clean, _scatter(best, rows, here))


def chosen(values: Any, rows: Tensor) -> Any:
    """Return the rows of every tensor in nested tuples; what holds none stays."""
    if isinstance(values, Tensor):
        return values[rows]
    if isinstance(values, tuple):
        parts = [chosen(value, rows) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
    return values


def _looks(x: Tensor, index: int) -> bool:
    return index % LOOK.get(x.device.type, LOOK_ACCELERATED) == 0


def _initial(x: Tensor, score: Tensor | None = None) -> Searched:
    """Return the clean images as what a search begins with; anything beats a score that is not known."""
    count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if score is None:
        score = torch.full((len(x),), -torch.inf, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    return Searched(x.detach(), score, count - 1, count)


def _update_best(best: Searched, x_adv: Tensor, score: Tensor, step: int, passes: int) -> Searched:
    """Return the best with an iterate entered where it is better and nothing has reached the goal yet."""
    better = (score > best.score) & (best.score < 0)
    return Searched(
        torch.where(per_image(better, x_adv), x_adv, best.x_adv),
        torch.where(better, score, best.score),
        best.step.masked_fill(better, step),
        best.passes + passes,
    )


def _better(clean: Searched, found: Searched) -> Searched:
    better = found.score > clean.score
    return Searched(
        torch.where(per_image(better, clean.x_adv), found.x_adv, clean.x_adv),
        torch.where(better, found.score, clean.score),
        torch.where(better, found.step, -1),
        found.passes,
    )


def _scatter(best: Searched, rows: Tensor, here: Searched) -> Searched:
    if len(rows) == len(best.score):
        return here
    return Searched(*(kept.index_put((rows,), new.to(kept.dtype)) for kept, new in zip(best, here, strict=True)))


class Adversarials(NamedTuple):
    """What a search in a ball found, and how.

    x_adv: (N, ...), feasible. score: (N,), 0 or more iff the goal is reached; for an attack that wants any wrong
    class it is the margin. target: (N,) int64, the class aimed at, or -1. component: (N,) int64, which attack
    of a nested `Worst` found x_adv, from 0; -1 = none, it is the clean image. step: (N,) int64, at which of its
    iterates. passes: (N,) int64, forwards and backwards spent on the image, the clean forward not counted.
    """

    x_adv: Tensor
    score: Tensor
    target: Tensor
    component: Tensor
    step: Tensor
    passes: Tensor


class Nearest(NamedTuple):
    """What a search for the nearest adversarial image found.

    x_adv: (N, ...) in the box; the clean image where none was found or where it is misclassified itself. distance:
    (N,) its norm; 0 where the clean image is misclassified, inf where none was found. step and passes as in
    `Adversarials`.
    """

    x_adv: Tensor
    distance: Tensor
    step: Tensor
    passes: Tensor


class AttackResult(NamedTuple):
    """What calling an attack returns, on the images' device.

    x_adv: (N, C, H, W), feasible; the clean image where nothing worse was found. success: (N,) bool, the attack's goal
    is reached: the image is misclassified, or, for an attack that aims at one class, put there. margin: (N,) best wrong
    logit minus true logit of x_adv, 0 or more = misclassified, by a forward of its own. passes: (N,) int64, forwards
    and backwards that the search spent.
    """

    x_adv: Tensor
    success: Tensor
    margin: Tensor
    passes: Tensor

    def __repr__(self) -> str:
        """Say it in a line: the arrays would fill pages of a terminal."""
        return f"<AttackResult: success on {int(self.success.sum())} of {number_of(len(self.success))}>"


class DistanceResult(NamedTuple):
    """What calling a distance attack returns, on the images' device.

    x_adv: (N, C, H, W), the nearest adversarial image found, else the clean image. distance: (N,) its norm in pixels of
    [0, 1], an upper bound; 0 where the clean image is misclassified, inf where none was found. success: (N,) bool, one
    was found, within the radius if there is one. passes: (N,) int64, forwards and backwards spent.
    """

    x_adv: Tensor
    distance: Tensor
    success: Tensor
    passes: Tensor

    def __repr__(self) -> str:
        """Say it in a line: the arrays would fill pages of a terminal."""
        found, middle = int(self.success.sum()), float(self.distance.median())
        return f"<DistanceResult: success on {found} of {number_of(len(self.success))}, median distance {middle:.4g}>"


def with_logits(model: nn.Module, batch: Batch, chunk: int | None = None) -> Batch:
    """Return the batch with its clean logits, all without a graph; they are computed only if it has none."""
    if batch.logits is not None and not any(_needs_copy(part) for part in batch):
        return batch
    own = (part if part is None or not part.is_inference() else part.clone() for part in batch)
    batch = Batch(*own)  # type: ignore[arg-type]
    batch = batch._replace(x=batch.x.detach())
    if batch.logits is not None:
        return batch._replace(logits=batch.logits.detach())
    with torch.no_grad():
        return batch._replace(logits=in_parts(model, batch.x, chunk))


def _needs_copy(part: Tensor | None) -> bool:
    return part is not None and (part.requires_grad or part.is_inference())


def owned(found: Adversarials) -> Adversarials:
    """Return a copy that may be written into."""
    return Adversarials(*(part.clone() for part in found))


def as_component(found: Searched, target: Tensor) -> Adversarials:
    """Return what one attack's search found, with the classes that it aimed at, as the record of that attack."""
    component, step = found.step.clamp(max=0), found.step.clamp(min=0)
    return Adversarials(found.x_adv, found.score, target, component, step, found.passes)


def enter(best: Adversarials, rows: Tensor, found: Adversarials, component: int) -> None:
    """Enter what was found for these rows of the best where its score is larger, in place; passes add up."""
    whole = len(rows) == len(best.score)
    old = best if whole else chosen(best, rows)
    better = found.score > old.score
    new = found._replace(component=torch.full_like(found.component, component))
    for had, value in zip(old[:-1], new[:-1], strict=True):
        torch.where(per_image(better, value), value.to(had.dtype), had, out=had)
    old.passes.add_(found.passes)
    if not whole:
        for kept, part in zip(best, old, strict=True):
            kept.index_copy_(0, rows, part)
