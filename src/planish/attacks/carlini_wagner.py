"""Carlini and Wagner's attacks: Adam on a penalty of the perturbation plus a constant times the margin, one per norm.

Both are one descent, `_descend`, with another penalty and another rule for what follows a search. Every image has its
own constant, its own moments and its own end of a search: where its neighbours stand changes nothing.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest, chosen, evaluated
from planish.search.nearest import NearestSearch
from planish.search.objectives import loss_of, objective_of

REACH = 1.05
"""The tanh spans the box times this: at pixels 0 and 1 it still has a tenth of its steepest slope."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, from the authors' code."""
GROWTH = 10.0
"""The L2 constant grows by this until it is large enough, as in the authors' code."""
PROGRESS = 0.9999
"""A loss has improved when it is below its lowest so far times this, as in the authors' code."""
PATIENCE = 25
"""Iterates for which an L2 search may come no further, at least: Adam needs as many to turn round at the boundary."""
FINEST = 0.99
"""A bound tau is not lowered by less than one percent."""


class Iterate(NamedTuple):
    """The iterate of each image: (n, ...) and (n,).

    w: the iterate as tanh sees it. adversarial: whether it counts. distance: its norm. ended: whether its search is
    over, because it has made all its steps or has come no further for long.
    """

    w: Tensor
    adversarial: Tensor
    distance: Tensor
    ended: Tensor


class SearchPlan(Protocol):
    """What the searches of some images aim at, (n, ...), and what follows a search. A NamedTuple."""

    @property
    def start(self) -> Tensor:
        """Return where a new search begins, as tanh sees it, (n, ...)."""
        ...

    @property
    def constant(self) -> Tensor:
        """Return the weight of the margin in the loss, (n,)."""
        ...

    @property
    def rate(self) -> Tensor:
        """Return the Adam step, as tanh sees it, (n,)."""
        ...

    def penalty(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penalty of the perturbations, (n,), and its gradient, (n, ...)."""
        ...

    def after(self, iterate: Iterate) -> tuple[Self, Tensor, Tensor]:
        """Return the plan after an iterate, which images begin a new search, and which are finished, both (n,)."""
        ...


class ConstantPlan(NamedTuple):
    """L2: the constant of each image, by growth and then bisection; every search begins at the image.

    lower and upper: the largest constant that failed and the smallest that did not. succeeded: whether the current
    search has a success. left: (n,) int64, searches that are left, the current one included.
    """

    start: Tensor
    constant: Tensor
    rate: Tensor
    lower: Tensor
    upper: Tensor
    succeeded: Tensor
    left: Tensor

    def penalty(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        return delta.square().flatten(1).sum(1), 2 * delta

    def after(self, iterate: Iterate) -> tuple["ConstantPlan", Tensor, Tensor]:
        """Return a smaller constant after a search with a success, a larger one after another."""
        succeeded = self.succeeded | iterate.adversarial
        upper = torch.where(iterate.ended & succeeded, self.constant, self.upper)
        lower = torch.where(iterate.ended & ~succeeded, self.constant, self.lower)
        between = torch.where(upper.isfinite(), (lower + upper) / 2, self.constant * GROWTH)
        constant = torch.where(iterate.ended, between, self.constant)
        left = self.left - iterate.ended.long()
        plan = ConstantPlan(self.start, constant, self.rate, lower, upper, succeeded & ~iterate.ended, left)
        return plan, iterate.ended, left == 0


class TauPlan(NamedTuple):
    """Linf: the bound tau of each image, lowered below each success; a search begins at the nearest success.

    best: the smallest norm of a success. decrease: tau over best after a success; nearer to 1 where no constant
    succeeds. first: the constant of the latest success within tau. largest, share: see `CarliniWagnerLinf`.
    """

    start: Tensor
    constant: Tensor
    tau: Tensor
    best: Tensor
    decrease: Tensor
    first: Tensor
    largest: float
    share: float

    @property
    def rate(self) -> Tensor:
        return self.share * self.tau

    def penalty(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        over = delta.abs() - per_image(self.tau, delta)
        return over.clamp(min=0).flatten(1).sum(1), delta.sign() * (over > 0)

    def after(self, iterate: Iterate) -> tuple["TauPlan", Tensor, Tensor]:
        """Return a smaller tau after a success within it, else a doubled constant when the search has ended."""
        solved = iterate.adversarial & (iterate.distance <= self.tau)
        failed = iterate.ended & ~solved
        constant = torch.where(failed, 2 * self.constant, self.constant)
        exhausted = failed & (constant > self.largest)
        decrease = torch.where(exhausted, self.decrease.sqrt(), self.decrease)
        nearer = iterate.adversarial & (iterate.distance < self.best)
        best = torch.where(nearer, iterate.distance, self.best)
        plan = self._replace(
            start=torch.where(per_image(nearer, iterate.w), iterate.w, self.start),
            constant=torch.where(exhausted, self.first, constant),
            tau=torch.where(solved | exhausted, best * decrease, self.tau),
            best=best,
            decrease=decrease,
            first=torch.where(solved, self.constant, self.first),
        )
        return plan, solved | failed, exhausted & ((decrease > FINEST) | best.isinf())


@dataclass(frozen=True)
class CarliniWagner(DistanceAttack):
    """C&W in L2: Adam, the constant bisected per image (Carlini, Wagner 2017). carlini-wagner-STEPS-SEARCHES.

    steps: of Adam for each search at most, at least 1; a forward and a backward each. A search whose loss has not
        fallen for a tenth of them, and at least 25, ends.
    searches: values of c, at least 1.
    step_size: of Adam, in w, above 0.
    constant: the first c, above 0.
    confidence: in logits, at least 0; only iterates misclassified by at least as much count.

    Minimises ||delta||_2^2 + c max(z_y - max_{j != y} z_j + confidence, 0), section VI.A with f_6, untargeted, over w
    with x + delta = tanh(w). Every search begins at the image; c is multiplied by 10 until a search succeeds, then
    bisected. The nearest success of all iterates is returned.

    Differs: the tanh reaches 2.5 % beyond each end of the box, with w held where the image is inside, so that every
    image starts at itself and pixels at 0 and 1 can move: in the paper their slope vanishes. Each image ends its
    searches alone, where the authors' code looks at the loss of the batch.
    """

    steps: int = 1000
    searches: int = 9
    step_size: float = 0.01
    constant: float = 1e-3
    confidence: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, self.step_size, self.constant, self.confidence)
        at_least(1, searches=self.searches)

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest success of each image; nothing is drawn. Raises BadInput for a norm other than L2."""
        if threat.name != "L2":
            raise BadInput(f"carlini-wagner is for L2, not {threat.name}; use carlini-wagner-linf for Linf")
        return _descend(self, model, batch, threat)

    @property
    def patience(self) -> int:
        """Return after how many iterates without progress a search ends."""
        return max(math.ceil(self.steps / 10), PATIENCE)

    def plan(self, start: Tensor, threat: ThreatModel) -> ConstantPlan:
        """Return the plan of the first search."""
        constant = start.new_full((len(start),), self.constant)
        never = torch.zeros_like(constant, dtype=torch.bool)
        left = torch.full_like(constant, self.searches, dtype=torch.int64)
        unbounded = torch.full_like(constant, torch.inf)
        rate = torch.full_like(constant, self.step_size)
        return ConstantPlan(start, constant, rate, torch.zeros_like(constant), unbounded, never, left)


@dataclass(frozen=True)
class CarliniWagnerLinf(DistanceAttack):
    """C&W in Linf: a bound is lowered after each success (Carlini, Wagner 2017). carlini-wagner-linf-STEPS.

    steps: of Adam for each search at most, at least 1; a forward and a backward each. A search whose loss has not
        fallen for a tenth of them ends.
    step_size: of Adam, in w, as a share of tau, above 0.
    constant: the first c, above 0.
    largest: the largest c, at least constant.
    confidence: in logits, at least 0; only iterates misclassified by at least as much count.
    decrease: the next tau over the norm of a success, in (0, 1).

    Minimises c max(z_y - max_{j != y} z_j + confidence, 0) + sum_i (|delta_i| - tau)+, section VI.C with f_6,
    untargeted, over w with x + delta = tanh(w). tau begins at the width of the box. After a success within tau it
    becomes `decrease` times the success's norm, and the next search begins at the success, with the same c. After a
    search without one c is doubled, up to `largest`. The nearest success of all iterates is returned.

    Differs: the paper stops at the first tau for which no c succeeds; here `decrease` then becomes its square root, so
    that tau goes back up towards the nearest success, until it would be within 1 %. The step is a share of tau: the
    authors' code has 0.005 throughout, as large as the answer where models are fragile. c begins at 0.01 instead of
    1e-5: the smallest cost searches and found nothing nearer. The tanh is that of `carlini-wagner`, and each image ends
    its searches alone.
    """

    steps: int = 100
    step_size: float = 0.02
    constant: float = 0.01
    largest: float = 20.0
    confidence: float = 0.0
    decrease: float = 0.9

    def __post_init__(self) -> None:
        _check(self.steps, self.step_size, self.constant, self.confidence)
        if not 0 < self.decrease < 1:
            raise BadInput(f"decrease must lie between 0 and 1, got {self.decrease}")
        if not self.constant <= self.largest < math.inf:
            raise BadInput(f"largest must be finite and at least constant, {self.constant}, got {self.largest}")

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the nearest success of each image; nothing is drawn. Raises BadInput for a norm other than Linf."""
        if threat.name != "Linf":
            raise BadInput(f"carlini-wagner-linf is for Linf, not {threat.name}; use carlini-wagner for L2")
        return _descend(self, model, batch, threat)

    @property
    def patience(self) -> int:
        return math.ceil(self.steps / 10)

    def plan(self, start: Tensor, threat: ThreatModel) -> TauPlan:
        constant = start.new_full((len(start),), self.constant)
        tau = torch.full_like(constant, threat.high - threat.low)
        decrease = torch.full_like(constant, self.decrease)
        best = torch.full_like(tau, torch.inf)
        return TauPlan(start, constant, tau, best, decrease, constant, self.largest, self.step_size)


class AdamWalk(NamedTuple):
    """Where the current search of each image stands; all (n, ...).

    w: the iterate as tanh sees it. mean and square: Adam's moments. age: (n,) int64, steps made. lowest: (n,) the
    lowest loss. stale: (n,) int64, iterates since then.
    """

    w: Tensor
    mean: Tensor
    square: Tensor
    age: Tensor
    lowest: Tensor
    stale: Tensor


def _descend(attack: CarliniWagner | CarliniWagnerLinf, model: nn.Module, batch: Batch, threat: ThreatModel) -> Nearest:
    """Run every image's searches one after the other; an image whose plan is finished leaves the batch."""
    with attacked(model):
        search = NearestSearch.begun(model, batch, threat)
        batch, found, rows, index = search.batch, search.found, search.unfinished(), 0
        start = _squashed(batch.x[rows], threat)
        plan: SearchPlan = attack.plan(start, threat)
        walk = _begun(start)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:  # 0 iff an image counts as a success
            return (attack.confidence - margin(logits, labels)).clamp(min=0)

        while len(rows):
            x_adv = _image(walk.w, threat)
            hinge, _, gradient = evaluated(objective_of(model, loss_of(loss, batch.labels[rows])), x_adv)
            found.passes[rows] += 2
            search.offer(rows, x_adv, hinge == 0, index)
            delta = x_adv - batch.x[rows]
            penalty, slope = plan.penalty(delta)
            slope = slope + per_image(plan.constant, x_adv) * gradient.nan_to_num(0, 0, 0)
            walk = _noted(walk, penalty + plan.constant * hinge)
            ended = (walk.age + 1 >= attack.steps) | (walk.stale >= attack.patience)
            moved = _moved(walk, slope * _bend(walk.w, threat), plan.rate)
            plan, again, finished = plan.after(Iterate(walk.w, hinge == 0, threat.norm(delta), ended))
            begun = zip(_begun(plan.start), moved, strict=True)
            walk = AdamWalk(*(torch.where(per_image(again, old), new, old) for new, old in begun))
            going = (~finished & (found.distance[rows] > threat.radius)).nonzero().squeeze(1)
            if len(going) < len(rows):
                rows, walk, plan = chosen((rows, walk, plan), going)
            index += 1
    return found


def _begun(start: Tensor) -> AdamWalk:
    count = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    lowest = torch.full_like(count, torch.inf, dtype=start.dtype)
    return AdamWalk(start, torch.zeros_like(start), torch.zeros_like(start), count, lowest, count)


def _noted(walk: AdamWalk, loss: Tensor) -> AdamWalk:
    better = loss < PROGRESS * walk.lowest
    lowest = torch.where(better, loss, walk.lowest).to(walk.lowest.dtype)
    return walk._replace(lowest=lowest, stale=torch.where(better, 0, walk.stale + 1))


def _moved(walk: AdamWalk, gradient: Tensor, rate: Tensor) -> AdamWalk:
    """Return the walk after a step of Adam (Kingma and Ba 2015) down the gradient in w."""
    age = walk.age + 1
    mean = torch.lerp(gradient, walk.mean, BETA1)
    square = torch.lerp(gradient.square(), walk.square, BETA2)
    seen_mean, seen_square = (1 - torch.exp(age * math.log(beta)) for beta in (BETA1, BETA2))
    scale = (square / per_image(seen_square, square)).sqrt() + EPSILON
    w = walk.w - per_image(rate / seen_mean, mean) * mean / scale
    edge = math.atanh(1 / REACH)
    return walk._replace(w=w.clamp(-edge, edge), mean=mean, square=square, age=age)


def _squashed(x: Tensor, threat: ThreatModel) -> Tensor:
    """Return w with _image(w) = x: atanh by log, since torch.atanh's last bit depends on the place in the tensor."""
    middle, half = (threat.low + threat.high) / 2, (threat.high - threat.low) / 2
    u = (x - middle) / (half * REACH)
    return torch.log((1 + u) / (1 - u)) / 2


def _image(w: Tensor, threat: ThreatModel) -> Tensor:
    """Return the image that w stands for; rounding alone could take it out of the box."""
    middle, half = (threat.low + threat.high) / 2, (threat.high - threat.low) / 2
    return (middle + half * REACH * w.tanh()).clamp(threat.low, threat.high)


def _bend(w: Tensor, threat: ThreatModel) -> Tensor:
    """Return d image / d w."""
    return (threat.high - threat.low) / 2 * REACH * (1 - w.tanh().square())


def _check(steps: int, step_size: float, constant: float, confidence: float) -> None:
    at_least(1, steps=steps)
    for name, value in (("step_size", step_size), ("constant", constant)):
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{name} must be positive, got {value}")
    if not confidence >= 0:
        raise BadInput(f"confidence must not be negative, got {confidence}")


COMPONENTS = {"carlini-wagner": CarliniWagner, "carlini-wagner-linf": CarliniWagnerLinf}
