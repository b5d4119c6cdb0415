"""Training on the device: a step of every method, compiled networks, resumed runs, memory, and waiting hosts."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from loops import step
from timing import Problem
from torch import nn

from gpu_pieces.agreement import labelled, moved, small
from gpu_pieces.job import Job, Row
from gpu_pieces.network import CLASSES, THREAT, batch_of, component, drawn, network
from planish.attacks import run
from planish.core.batch import Batch
from planish.core.losses import cross_entropy
from planish.core.modes import Precision, attacked
from planish.core.randomness import seeded
from planish.data.batches import Augmentation, Batches
from planish.methods import Method, StepContext
from planish.runs.run import load_resume, save_resume
from planish.search.ascent import ascend
from planish.search.objectives import loss_of, objective_of
from planish.search.step_rules import COSINE_MOMENTUM, Adam, AutoPGD, Momentum, Steepest, StepRule
from planish.training.loop import fit, start
from planish.training.settings import Settings
from planish.training.state import State, go_on, to_go_on
from planish.training.step import Bound

RULES: dict[str, StepRule] = {
    "steepest": Steepest(0.25),
    "momentum": Momentum(0.1),
    "glide": COSINE_MOMENTUM,
    "adam": Adam(0.1),
    "apgd": AutoPGD(),
}
NOT_STANDARD = ("gradient-penalty", "cure", "mart")
"""At radius 0 these are not standard training: their penalty or loss is another."""
TWICE = ("llr",)
"""At radius 0 it is twice standard training: the nominal loss counts in both its terms."""


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On CUDA, what makes the host wait raises an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def ascent(job: Job) -> Row:
    """Run the inner loop by every rule; on CUDA the host must not wait."""
    model, batch = problem(job)
    objective = objective_of(model, loss_of(cross_entropy, batch.labels))
    found = {}
    for name, rule in RULES.items():
        with attacked(model):
            ascend(objective, batch.x, THREAT, rule, 5)
            job.wait()
            try:
                with no_waiting(job.device):
                    ascend(objective, batch.x, THREAT, rule, 5)
                found[name] = "ok"
            except RuntimeError as error:
                found[name] = str(error)[:300]
    waits = "not applicable" if job.device.type != "cuda" else "checked"
    return {"status": "ok" if {*found.values()} == {"ok"} else "failed", "host_waits": waits, "rules": found}


def problem(job: Job) -> tuple[nn.Module, Batch]:
    """Return a small network on the device and images, channels last."""
    model = small()
    there = deepcopy(model).to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return there, moved(labelled(model), job.device)


def method_step(job: Job, name: str) -> Row:
    """Take a step in float32 and in bf16: finite, every parameter learns; at radius 0 as standard training."""
    method: Method = component("methods", name)
    problems, losses = [], {}
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for precision in precisions:
        model, batch = problem(job)
        loss = one_step(method, model.train(), batch, precision)
        losses[precision] = float(loss) if loss.isfinite() else None
        parameters = dict(model.named_parameters())
        without = [key for key, p in parameters.items() if p.grad is None or not bool(p.grad.isfinite().all())]
        still = [key for key, p in parameters.items() if key not in without and not bool(p.grad.any())]  # type: ignore[union-attr]
        if losses[precision] is None or without or still:
            problems.append(f"{precision}: loss {losses[precision]}, no gradient of {without}, zeros of {still}")
    apart = None if name in NOT_STANDARD else radius_zero(job, method, 2.0 if name in TWICE else 1.0)
    if apart is not None and not apart <= 1e-3:
        problems.append(f"at radius 0 gradients are {apart:.2g} of the largest from standard training's")
    waits = waiting(job, method)
    status = "failed" if problems else "ok"
    return {"status": status, "losses": losses, "radius_0": apart, "host_waits": waits, "problems": problems}


def one_step(method: Method, model: nn.Module, batch: Batch, precision: Precision, radius: float = 1.0) -> torch.Tensor:
    """Return the loss of a step at so many times the radius, its gradients entered."""
    context = StepContext(seeded(0, device=batch.x.device), 0.5, identities=len(batch.x))
    bound = Bound(model, method, THREAT.scaled(radius), precision)
    total: torch.Tensor = bound(*batch[:3], context).total
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach()


def radius_zero(job: Job, method: Method, weight: float) -> float:
    """Return how far a step's gradients at radius 0 are from standard training's, relative to the largest."""
    if any(item.name == "label_smoothing" for item in fields(method)):  # type: ignore[arg-type]
        method = replace(method, label_smoothing=0.0)  # type: ignore[type-var]
    model, batch = problem(job)
    plain = deepcopy(model.train())
    one_step(method, model, batch, "float32", radius=0.0)
    (weight * F.cross_entropy(plain(batch.x), batch.labels)).backward()  # type: ignore[no-untyped-call]
    pairs = [(one.grad, other.grad) for one, other in zip(model.parameters(), plain.parameters(), strict=True)]
    largest = max(float(other.abs().max()) for _, other in pairs if other is not None)
    return (
        max(float((one - other).abs().max()) for one, other in pairs if one is not None and other is not None) / largest
    )


def waiting(job: Job, method: Method) -> int | str:
    """Return how often a step makes the host wait, its first one aside."""
    if job.device.type != "cuda":
        return "not applicable"
    model, batch = problem(job)
    take = step(method, Problem(model.train(), batch, THREAT), "bf16")
    take()
    job.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def resume(job: Job) -> Row:
    """Train two epochs, and again with a stop after the first: loaded from a file, it must end where the first did."""
    settings = Settings(epochs=2, batch_size=16, learning_rate=0.05, ema=0.9, precision="bf16")
    seen = drawn(64, seed=2).to(job.device)
    batches = Batches(seen, settings.batch_size, Augmentation(2, True), job.device)
    whole, path = fresh(job, settings), job.work / "resume.pt"
    trained(whole, batches, settings)
    first = fresh(job, settings)
    next(fit(first, component("methods", "planish-at"), THREAT, batches, settings, seed=0))
    save_resume(path, to_go_on(first))
    second = fresh(job, settings)
    go_on(second, load_resume(path))
    trained(second, batches, settings)
    pairs = zip(whole.deployed.state_dict().values(), second.deployed.state_dict().values(), strict=True)
    apart = max(float((one.float() - other.float()).abs().max()) for one, other in pairs)
    return {"status": "ok" if apart < 1e-2 else "differs", "epochs": second.epoch, "largest_difference": apart}


def fresh(job: Job, settings: Settings) -> State:
    """Return the state before training."""
    return start(problem(job)[0], settings)


def trained(state: State, batches: Batches, settings: Settings) -> None:
    """Train to the end."""
    for _ in fit(state, component("methods", "planish-at"), THREAT, batches, settings, seed=0):
        pass


def compiled(job: Job, name: str) -> Row:
    """Compare steps of a compiled network with those of the same network that is not; no kernels are made on a CPU."""
    method: Method = component("methods", name)
    backend = "inductor" if job.device.type == "cuda" else "aot_eager"
    torch.compiler.reset()
    model, batch = problem(job)
    twin = deepcopy(model).train()
    model.train()
    used: Any = torch.compile(model, backend=backend)
    losses = []
    for _ in range(2):
        model.zero_grad()
        twin.zero_grad()
        both = [one_step(method, one, batch, "float32") for one in (used, twin)]
        losses.append([float(loss) for loss in both])
    pairs = [(one.grad, other.grad) for one, other in zip(model.parameters(), twin.parameters(), strict=True)]
    apart = max(float((one - other).abs().max()) for one, other in pairs if one is not None and other is not None)
    good = apart < 1e-2 and all(abs(one - other) < 1e-3 for one, other in losses)
    return {"status": "ok" if good else "differs", "backend": backend, "losses": losses, "gradients_apart": apart}


def memory(job: Job) -> Row:
    """Return the most memory of steps and an attack at full width, in bytes; nothing is known of it on a CPU."""
    if job.device.type != "cuda":
        return {"status": "not applicable"}
    model = network(job, "relu")
    some = batch_of(job, 256, model=model.eval())
    given = Problem(model, some.select(slice(0, 128)), THREAT)
    calls: dict[str, Callable[[], object]] = {
        f"{name}, batch 128, {kind}": step(component("methods", name), given, kind)
        for name in ("standard", "planish-at", "pgd", "seat")
        for kind in ("float32", "bf16")
    }
    attack = component("attacks", "pgd", steps=10, restarts=1, classes=CLASSES)
    calls["PGD-10, batch 256"] = lambda: run(attack, model.eval(), some, THREAT, generator=seeded(0))
    peaks = {}
    for name, call in calls.items():
        model.train().zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        call()
        peaks[name] = torch.cuda.max_memory_allocated()
    return {"status": "ok", "bytes": peaks}
