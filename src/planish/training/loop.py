"""Training: `fit` yields a record per epoch; the caller's loop body logs, validates, saves and stops."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from planish.core.arguments import threat_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import batch_norms, fixed_statistics, trains
from planish.core.randomness import drawn_seed, reproducible, seeded
from planish.core.threat import ThreatModel
from planish.data.images import Images
from planish.methods import Method, StepContext, TrainingLoss
from planish.training.collapse import OFF, CollapseMonitor, Guard
from planish.training.epochs import Epochs, Shared, epochs_of
from planish.training.processes import ALONE, Group, Part, refuse_wrapped, synchronized
from planish.training.settings import Settings, learning_rate, optimizer_of
from planish.training.state import State
from planish.training.step import PlainLogits, Stepper, lies_channels_last

MOST_ESCALATIONS = 6
EXTRA_STATE = "_extra_state"
"""How PyTorch ends the names of what modules keep besides tensors (`nn.Module.get_extra_state`)."""
DRAWN = 0xD204  # keeps what a model draws by itself apart from a method's noise for the same seed and step
SNAPSHOTS, APART = 2, 2
"""Healthy states to go back to, and how many probes lie between them: the older is at least so far from an alarm."""


class Examples(NamedTuple):
    """Some held-out images (M, C, H, W), and what PGD made of them."""

    x: Tensor
    x_adv: Tensor


class EpochRecord(NamedTuple):
    """One epoch: means over its batches of loss, terms and training accuracy; learning rate, seconds, alarms.

    metrics: what the guard saw, if there is one, is in them as "guard_...". examples: of a run in a folder that holds
    images out.
    """

    epoch: int
    metrics: dict[str, float]
    learning_rate: float
    seconds: float
    alarms: tuple[dict[str, float], ...] = ()
    examples: Examples | None = None


def start(model: nn.Module, settings: Settings, group: Group = ALONE) -> State:
    """Return the state before the first step. Raises BadInput if every parameter is frozen, or the model is wrapped.

    Parts in evaluation mode of a model in training mode rest: they stay in evaluation mode. A model that is in
    evaluation mode as a whole is trained as a whole.
    """
    refuse_wrapped(model)
    if settings.batch_norm == "synchronized":
        model = synchronized(model, group)
    if lies_channels_last(model, settings):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, resting = optimizer_of(model, settings), [module for module in model.modules() if not trains(module)]
    average = deepcopy(model) if settings.ema > 0 else None
    return State(model, optimizer, average, resting=resting if model.training else [])


def fit(
    state: State,
    method: Method,
    threat: ThreatModel | str,
    batches: Epochs | Iterable[Any] | Dataset[Any] | Images,
    settings: Settings,
    *,
    seed: int,
    guard: Guard = OFF,
    held_out: Batch | None = None,
    after_step: Callable[[], None] = lambda: None,
    group: Group = ALONE,
) -> Iterator[EpochRecord]:
    """Train from the state on, one record per finished epoch; the state is up to date at every yield.

    batches: such as `planish.data.batches.Batches`; or a DataLoader of (images, labels), images (N, C, H, W) in [0, 1];
    or images and labels as `train` takes them, which are shuffled and cut into batches.
    guard: when the run is probed; when the model collapses, training goes back to a healthy state, which may lie epochs
    back, and on with the method strengthened. PGD is tried on `held_out` images, if there are any.
    after_step: called whenever the weights have moved and the state can be saved, for whoever saves within an epoch.
    group: the processes that train together (`planish.training.processes.joined`); batches are each one's share.
    Deterministic on CPU: order, augmentation, noise and the model's own draws (dropout) depend on the seed and
    the step alone; of several processes each draws its own dropout.
    Raises BadInput if the method needs derivatives that a compiled or synchronised module has not, FloatingPointError
    if the loss or the weights are not finite.
    """
    group.together(lambda: check_derivatives(state.model, method, settings))
    if group.size > 1 and not (isinstance(batches, Shared) and batches.share == group.share):
        raise BadInput("several processes need batches that know their share: planish.data.batches.Batches(share=)")
    stepper = Stepper.of(state.model, method, threat := threat_of(threat), settings, group)
    monitor = CollapseMonitor(guard, threat, seed, held_out, group)
    given = epochs_of(batches, threat, settings.batch_size, next(state.model.parameters()).device)
    run = _Run(state, method, stepper, given, settings, seed, monitor, after_step)
    run.check_rates()
    began = time.perf_counter()
    while state.epoch < settings.epochs:
        before = [entry.get("seconds", 0.0) for entry in state.history]
        if not run.epoch():
            began -= sum(before[len(state.history) :])  # what was undone took its time, too
            continue
        metrics = run.metrics()
        last = (state.epoch + (run.steps - 1) / run.steps) / settings.epochs
        rate = learning_rate(settings, last)
        state.epoch, state.index, state.sums = state.epoch + 1, 0, {}
        metrics |= state.monitor.means_of(state.epoch)
        alarms = tuple(alarm for alarm in state.monitor.alarms if alarm["epoch"] == state.epoch)
        told = {"alarms": list(alarms)} if alarms else {}
        state.history.append({"epoch": state.epoch, **metrics, "epochs_done": run.done, **told})
        yield EpochRecord(state.epoch, metrics, rate, time.perf_counter() - began, alarms)
        began = time.perf_counter()


def check_derivatives(model: nn.Module, method: Method, settings: Settings) -> None:
    """Raise BadInput if the method differentiates a gradient where PyTorch cannot."""
    if not method.second_order:
        return
    if settings.compile:
        raise BadInput("settings.compile works for methods with first derivatives only; set settings.compile=false")
    if settings.batch_norm == "synchronized" or any(isinstance(part, nn.SyncBatchNorm) for part in model.modules()):
        raise BadInput(
            "synchronized batch norm has no second derivative, which this method needs: use plain batch norm, or a "
            'method with first derivatives only, such as gradient-penalty with slope = "forward"'
        )


@dataclass(frozen=True)
class _Run:
    """A training run: the state and what it is trained with."""

    state: State
    method: Method
    stepper: Stepper
    batches: Epochs
    settings: Settings
    seed: int
    monitor: CollapseMonitor
    after_step: Callable[[], None]

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.batches) * self.method.replays

    @property
    def done(self) -> float:
        """How often every batch was trained on so far, replays and what was undone included."""
        return (self.state.step + self.state.monitor.undone) / len(self.batches)

    def check_rates(self) -> None:
        """Raise BadInput if the only step of the whole run has a learning rate of 0."""
        own = self.settings
        if self.steps * own.epochs == 1 and learning_rate(own, 0.0) == 0 < own.learning_rate:
            raise BadInput(
                f'the schedule "{own.schedule}" starts at a learning rate of 0, and this run has one step in all; set '
                'settings.schedule = "constant", or train for more epochs'
            )

    def metrics(self) -> dict[str, float]:
        """Return the means over the present epoch, one host sync. FloatingPointError where something overflowed."""
        sums = torch.stack([*self.state.sums.values()]).tolist()
        means = {name: value / self.steps for name, value in zip(self.state.sums, sums, strict=True)}
        known = math.isfinite(means["loss"])
        if not (known and self.state.finite()):
            what = "the weights are not finite" if known else f"the loss became {means['loss']}"
            raise FloatingPointError(f"{what} in epoch {self.state.epoch + 1}; lower the learning rate")
        return means

    def epoch(self) -> bool:
        """Train the rest of the present epoch; False if the model collapsed and the state has gone back."""
        state, settings = self.state, self.settings
        state.to_train()
        self.stepper.bound.method = strengthened(self.method, state.monitor.escalations)
        if self.monitor.guard.every and not state.snapshots:
            state.snapshot(SNAPSHOTS)
        for batch in self._rest():
            progress = (state.epoch + state.index / self.steps) / settings.epochs
            first = state.index - state.index % settings.accumulate
            together = min(settings.accumulate, self.steps - first)
            with _normalizable(state, batch):
                loss = self._backward(batch, progress, together, state.index + 1 == first + together)
            state.step, state.index = state.step + 1, state.index + 1
            if state.index < first + together:
                continue
            _update(state, settings, progress)
            if self.monitor.due(state.step, together) and not self._healthy(batch, loss):
                return False
            self.after_step()
        return True

    def _rest(self) -> Iterator[Batch]:
        """Yield the batches of the present epoch that are not done, each as often as the method replays it."""
        replays = self.method.replays
        skip, done = divmod(self.state.index, replays)
        for batch in self.batches.epoch(self.state.epoch, self.seed, skip):
            for _ in range(done, replays):
                yield batch
            done = 0

    def _backward(self, batch: Batch, progress: float, together: int, last: bool) -> TrainingLoss:
        """Add a batch's gradient and metrics, and keep what the method remembers of it."""
        state, group, method = self.state, self.stepper.group, self.stepper.bound.method
        part = Part(group, batch, self._whole(batch))
        noise, memory = seeded(self.seed, state.step, device=batch.x.device), part.lent(method, state.memory)
        own = (part.noise(noise), progress, state.step, memory, self.batches.identities)
        with reproducible(drawn_seed(seeded(self.seed, DRAWN, state.step, group.share.number))):
            loss = self.stepper.backward(part, StepContext(*own, mean=part.mean), together, last)
        part.keep(method, memory, state.memory)
        _add(state.sums, part.united(_metrics(loss, batch), state.model))
        return loss

    def _whole(self, batch: Batch) -> int:
        """Return how many images the batch has, those of other processes too."""
        if self.stepper.group.size == 1:
            return len(batch.x)
        assert isinstance(self.batches, Shared)
        return self.batches.whole(self.state.index // self.method.replays)

    def _healthy(self, batch: Batch, loss: TrainingLoss) -> bool:
        """Probe the model; if it has collapsed, go back and strengthen the method, where it can be."""
        state, seen = self.state, self.state.monitor
        place = {"step": state.step, "epoch": state.epoch + 1}
        if not self.monitor.collapsed(seen, PlainLogits(state.model), batch, loss, place):
            if not seen.nonlinear and state.step - state.snapshots[-1]["step"] >= APART * self.monitor.guard.every:
                state.snapshot(SNAPSHOTS)
            return True
        method = strengthened(self.method, seen.escalations)
        stronger = method.strengthened() if seen.escalations < MOST_ESCALATIONS else None
        if stronger is None and seen.alarms and not seen.alarms[-1]["went_back"]:
            return True
        seen.alarms.append({**seen.probes[-1], "went_back": float(stronger is not None)})
        if stronger is None:
            return True
        seen.escalations += 1
        state.go_back()
        return False


def strengthened(method: Method, times: int) -> Method:
    """Return the method strengthened so many times, or as often as it can be."""
    for _ in range(times):
        method = method.strengthened() or method
    return method


def _metrics(loss: TrainingLoss, batch: Batch) -> dict[str, Tensor]:
    """Return a step's loss, accuracy and terms, still on the device."""
    accuracy = (loss.logits.argmax(1) == batch.labels).float().mean()
    return {"loss": loss.total.detach(), "train_accuracy": accuracy, **loss.terms}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value.float()


@contextmanager
def _normalizable(state: State, batch: Batch) -> Iterator[None]:
    """For a batch of one image, batch norms that would see one value of each channel use their running averages.

    Raises BadInput at the first step, before which these know nothing.
    """
    own = [norm for norm in batch_norms(state.model) if norm.training and not isinstance(norm, nn.SyncBatchNorm)]
    norms = own if len(batch.x) == 1 else []
    if norms and not _normalized(state.model, batch.x):
        if state.step == 0:
            raise BadInput(
                "batch norm cannot be trained on single images: set settings.batch_size to 2 or more, in each process"
            )
    else:
        norms = []
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _normalized(model: nn.Module, x: Tensor) -> bool:
    """Say whether the model's batch norms have more than one value of each channel to normalise by."""
    try:
        with reproducible(0), torch.no_grad(), fixed_statistics(model):
            model(x)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return False
        raise
    return True


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
    """Move the average's parameters and floating buffers towards the model's, tied ones once; copy all else."""
    own, values = average.state_dict(), model.state_dict()
    extra = {name: value for name, value in values.items() if name.endswith(EXTRA_STATE)}
    once = {name for name, _ in (*average.named_parameters(), *average.named_buffers())}  # one name of what is tied
    for mean, value in ((own[name], values[name]) for name in own if name in once):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
    if extra:
        average.load_state_dict(extra, strict=False)
