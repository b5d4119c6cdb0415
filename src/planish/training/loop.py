"""Training: `fit` yields a record per epoch; the caller's loop body logs, validates, saves and stops."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput, at_least
from planish.core.modes import Precision, autocast, every_module, fixed_statistics
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.methods import Method, StepContext, TrainingLoss
from planish.models import corrupts_memory
from planish.training.guard import OFF, Guard, inspected
from planish.training.state import State
from planish.training.weight_perturbation import perturbable, perturbed_weights, steepest_weights


@dataclass(frozen=True)
class Settings:
    """How to optimise: SGD with Nesterov-free momentum.

    learning_rate: the peak. schedule: "triangular" (0 -> peak at 40 % -> 0, per step), "onecycle" (cosine up
    to 30 %, then down), "piecewise" (x 0.1 at 50 % and 75 %), "cosine" or "constant". weight_decay: on every
    parameter, or with decay_norms False on matrices and kernels only. ema: decay of the weight average, 0 =
    off; it warms up as min(ema, (1 + t) / (10 + t)) and covers buffers. weight_perturbation: gamma of AWP (Wu, Xia and
    Wang 2020), 0 = off, 0.005 to 0.01 are usual: the loss is taken at weights moved against it, after
    weight_perturbation_from of the training; costs one forward and backward more, or the whole step again for methods
    whose search is not apart from their loss. accumulate: batches per step. clip:
    largest gradient norm, 0 = off. precision: "bf16" runs forwards in bfloat16; losses and linearity errors
    stay in float32. channels_last: the layout of images and kernels, but for models that it would make crash
    (`models.corrupts_memory`). compile: torch.compile, for first-order methods.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.2
    schedule: Literal["triangular", "onecycle", "piecewise", "cosine", "constant"] = "triangular"
    drops: tuple[float, ...] = (0.5, 0.75)
    drop_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms: bool = True
    ema: float = 0.0
    weight_perturbation: float = 0.0
    weight_perturbation_from: float = 0.05
    accumulate: int = 1
    clip: float = 0.0
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for least, names in (
            (1, "epochs batch_size accumulate"),
            (0, "learning_rate drop_factor weight_decay weight_perturbation clip"),
        ):
            at_least(least, **{f"settings.{name}": getattr(self, name) for name in names.split()})
        for name in ("ema", "momentum", "weight_perturbation_from"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"settings.{name} must be in [0, 1), got {getattr(self, name)}")


MOST_ESCALATIONS = 6
SNAPSHOTS, APART = 2, 2
"""Healthy states to go back to, and how many looks lie between them: the older is at least so far from an alarm."""


class EpochRecord(NamedTuple):
    """One epoch: means over its batches of loss, terms and training accuracy; learning rate, seconds, alarms.

    metrics: what the guard saw, if there is one, is in them as "guard_...".
    """

    epoch: int
    metrics: dict[str, float]
    learning_rate: float
    seconds: float
    alarms: tuple[dict[str, float], ...] = ()


class Epochs(Protocol):
    """Training batches that depend on (seed, epoch) alone, so that a resumed run sees the same.

    identities: every index is below it; methods that remember each image need it. skip: leave out so many batches.
    """

    @property
    def identities(self) -> int | None: ...

    def __len__(self) -> int: ...
    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]: ...


def learning_rate(settings: Settings, share: float) -> float:
    """Return the learning rate after this share of the training."""
    peak = settings.learning_rate
    if settings.schedule == "triangular":
        return peak * (share / 0.4 if share < 0.4 else (1 - share) / 0.6)
    if settings.schedule == "onecycle":
        if share < 0.3:
            return _cosine(peak / 25, peak, share / 0.3)
        return _cosine(peak, peak / 2.5e5, (share - 0.3) / 0.7)
    if settings.schedule == "piecewise":
        return peak * settings.drop_factor ** sum(share >= drop for drop in settings.drops)
    return _cosine(peak, 0.0, share) if settings.schedule == "cosine" else peak


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


class Bound(nn.Module):
    """A method bound to its model: forward(batch) is the training loss.

    One module to wrap for several processes: the inner ascent and every extra pass happen inside its forward.
    """

    def __init__(self, model: nn.Module, method: Method, threat: ThreatModel, precision: Precision) -> None:
        super().__init__()
        self.model, self.method, self.threat, self.precision = model, method, threat, precision

    def forward(self, x: Tensor, labels: Tensor, indices: Tensor, context: StepContext) -> TrainingLoss:
        """Return the method's loss of the batch."""
        with autocast(x, self.precision):
            return self.method(self.model, Batch(x, labels, indices), self.threat, context)


def start(model: nn.Module, settings: Settings) -> State:
    """Return the state before the first step."""
    if _lies_channels_last(model, settings):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = None
    if settings.ema > 0:
        average = deepcopy(model).requires_grad_(False)
    return State(model, _optimizer(model, settings), average)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.requires_grad and (settings.decay_norms or p.ndim > 1)]
    others = [p for p in model.parameters() if p.requires_grad and not (settings.decay_norms or p.ndim > 1)]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def fit(
    state: State,
    method: Method,
    threat: ThreatModel,
    batches: Epochs,
    settings: Settings,
    *,
    seed: int,
    guard: Guard = OFF,
    held_out: Batch | None = None,
) -> Iterator[EpochRecord]:
    """Train from the state on, one record per finished epoch; the state is up to date at every yield.

    guard: looks at the run every so many steps; when the model collapses, training goes back to a healthy state, which
    may lie epochs back, and on with the method strengthened. Its probes take `held_out` images, if there are any.
    Deterministic on CPU: order, augmentation and noise of a step depend on the seed and the step alone.
    Raises BadInput if the method needs derivatives that a compiled or synchronised module has not, FloatingPointError
    if the loss is not finite.
    """
    _check_derivatives(state.model, method, settings)
    model = torch.compile(state.model) if settings.compile else state.model
    run = _Run(state, method, model, threat, batches, settings, seed, guard, held_out)  # type: ignore[arg-type]
    began = time.perf_counter()
    while state.epoch < settings.epochs:
        if not run.epoch():
            continue
        metrics = run.metrics()
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss became {metrics['loss']} in epoch {state.epoch + 1}; lower the learning rate"
            )
        state.epoch, state.index, state.sums = state.epoch + 1, 0, {}
        metrics |= state.watch.seen_in(state.epoch)
        alarms = tuple(alarm for alarm in state.watch.alarms if alarm["epoch"] == state.epoch)
        state.history.append({"epoch": state.epoch, **metrics, **({"alarms": list(alarms)} if alarms else {})})
        rate = state.optimizer.param_groups[0]["lr"]
        yield EpochRecord(state.epoch, metrics, rate, time.perf_counter() - began, alarms)
        began = time.perf_counter()


def _check_derivatives(model: nn.Module, method: Method, settings: Settings) -> None:
    """Raise BadInput if the method differentiates a gradient where PyTorch cannot."""
    if not method.second_order:
        return
    if settings.compile:
        raise BadInput("settings.compile works for methods with first derivatives only; set settings.compile=false")
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise BadInput(
            "synchronized batch norm has no second derivative, which this method needs: use plain batch norm, or a "
            'method with first derivatives only, such as gradient-penalty with slope = "forward"'
        )


@dataclass(frozen=True)
class _Run:
    """A training run: the state and what it is trained with."""

    state: State
    method: Method
    model: nn.Module
    threat: ThreatModel
    batches: Epochs
    settings: Settings
    seed: int
    guard: Guard
    held_out: Batch | None

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.batches) * self.method.replays

    def metrics(self) -> dict[str, float]:
        """Return the means over the present epoch: one host sync."""
        sums = torch.stack([*self.state.sums.values()]).tolist()
        return {name: value / self.steps for name, value in zip(self.state.sums, sums, strict=True)}

    def epoch(self) -> bool:
        """Train the rest of the present epoch; False if the model collapsed and the state has gone back."""
        state, settings = self.state, self.settings
        state.model.train()
        bound = Bound(self.model, strengthened(self.method, state.watch.escalations), self.threat, settings.precision)
        if self.guard.every and not state.snapshots:
            state.snapshot(SNAPSHOTS)
        for batch in self._rest():
            progress = (state.epoch + state.index / self.steps) / settings.epochs
            first = state.index - state.index % settings.accumulate
            together = min(settings.accumulate, self.steps - first)
            loss = _backward(bound, batch, settings, self._moment(batch, progress), together)
            state.step, state.index = state.step + 1, state.index + 1
            _add(state.sums, loss, batch)
            if state.index < first + together:
                continue
            _update(state, settings, progress)
            if self.guard.every and state.step % self.guard.every < together and not self._healthy(batch, loss):
                return False
        return True

    def _rest(self) -> Iterator[Batch]:
        """Yield the batches of the present epoch that are not done, each as often as the method replays it."""
        replays = self.method.replays
        skip, done = divmod(self.state.index, replays)
        for batch in self.batches.epoch(self.state.epoch, self.seed, skip):
            for _ in range(done, replays):
                yield batch
            done = 0

    def _moment(self, batch: Batch, progress: float) -> StepContext:
        state, generator = self.state, seeded(self.seed, self.state.step, device=batch.x.device)
        return StepContext(generator, progress, state.step, state.memory, self.batches.identities)

    def _healthy(self, batch: Batch, loss: TrainingLoss) -> bool:
        """Look at the model; if it has collapsed, go back and harden the method, where it can be."""
        state, watch = self.state, self.state.watch
        place = {"step": state.step, "epoch": state.epoch + 1}
        classes = loss.logits.shape[1]
        if not inspected(
            self.guard, watch, state.model, batch, loss.x_adv, self.held_out, self.threat, place, self.seed, classes
        ):
            if not watch.bent and state.step - state.snapshots[-1]["step"] >= APART * self.guard.every:
                state.snapshot(SNAPSHOTS)
            return True
        harder = (
            strengthened(self.method, watch.escalations).strengthened()
            if watch.escalations < MOST_ESCALATIONS
            else None
        )
        if harder is None and watch.alarms and not watch.alarms[-1]["went_back"]:
            return True
        watch.alarms.append({**watch.looks[-1], "went_back": float(harder is not None)})
        if harder is None:
            return True
        watch.escalations += 1
        state.go_back()
        return False


def strengthened(method: Method, times: int) -> Method:
    """Return the method strengthened so many times, or as often as it can be."""
    for _ in range(times):
        method = method.strengthened() or method
    return method


@torch.no_grad()
def _add(sums: dict[str, Tensor], loss: TrainingLoss, batch: Batch) -> None:
    """Add a step's loss, accuracy and terms, still on the device."""
    accuracy = (loss.logits.argmax(1) == batch.labels).float().mean()
    for name, value in {"loss": loss.total.detach(), "train_accuracy": accuracy, **loss.terms}.items():
        sums[name] = sums.get(name, 0.0) + value.float()


def _lies_channels_last(model: nn.Module, settings: Settings) -> bool:
    return settings.channels_last and not any(map(corrupts_memory, every_module(model)))


def _backward(bound: Bound, batch: Batch, settings: Settings, context: StepContext, together: int) -> TrainingLoss:
    """Add the batch's gradient, one of so many together in a step."""
    if _lies_channels_last(bound.model, settings):
        batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
    with _weights_against(bound, batch, settings, context) as context:
        loss: TrainingLoss = bound(*batch[:3], context)
        (loss.total / together).backward()  # type: ignore[no-untyped-call]
    return loss


@contextmanager
def _weights_against(bound: Bound, batch: Batch, settings: Settings, context: StepContext) -> Iterator[StepContext]:
    """The weights where the batch is worse off, if that is asked for, and the adversarial images found on the way."""
    if settings.weight_perturbation == 0 or context.progress < settings.weight_perturbation_from:
        yield context
        return
    again = torch.Generator(batch.x.device)
    again.set_state(context.generator.get_state())
    with fixed_statistics(bound.model):
        loss = bound(*batch[:3], context)
    gradients = torch.autograd.grad(loss.total, perturbable(bound.model), materialize_grads=True)
    steps = steepest_weights(bound.model, gradients, settings.weight_perturbation)
    with perturbed_weights(bound.model, steps):
        yield replace(context, generator=again, x_adv=loss.x_adv)


def _update(state: State, settings: Settings, progress: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(settings, progress)
    if settings.clip > 0:
        nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        updates = state.step // settings.accumulate
        _average(state.average, state.model, min(settings.ema, (1 + updates) / (10 + updates)))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average's parameters and floating buffers towards the model's; copy the counters."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
