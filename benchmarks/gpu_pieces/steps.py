"""What a training step costs: every method, hand-written loops beside them, compiled where that is allowed, the guard.

A step is a method's loss and its backward in bf16, channels last, on PreActResNet-18 with softplus, timed in turns with
standard training (`timing.compare`); the optimizer's step, the same for all, is left out.
"""

from collections.abc import Callable
from functools import cache

import torch
from loops import STEPS, Loop, fgsm, pgd, step
from timing import Problem, compare

from gpu_pieces.job import Job, Row
from gpu_pieces.network import THREAT, batch_of, component, network
from gpu_pieces.run import fixed_shapes
from planish.core.randomness import seeded
from planish.methods import Method
from planish.registry import components, stated_costs
from planish.training.collapse import EVERY, Guard, probe, withstanding
from planish.training.cost import training_cost

BASE = "standard"
WANTED = ("planish-at", "pgd", "fgsm", "rs-fgsm", "n-fgsm", "seat", "seat-fl", "gradient-penalty", "llr", "trades")
"""What is measured first."""
COMPILED = ("standard", "planish-at", "pgd", "seat")
COUNTED = 4
"""Images that the arithmetic of a step is counted on."""


def problem(job: Job, batch: int, compiled: bool = False) -> Problem:
    """Return the network in training mode and a batch."""
    model = network(job, "softplus")
    some = batch_of(job, batch, model=model.eval())
    model.train()
    used = torch.compile(model) if compiled else model
    return Problem(used, some._replace(logits=None), THREAT)  # type: ignore[arg-type]


def candidates() -> dict[str, Method]:
    """Return the hand-written loops and every method, the most wanted first."""
    loops: dict[str, Method] = {"hand-written FGSM": Loop(fgsm), f"hand-written PGD-{STEPS}": Loop(pgd)}
    rest = sorted(set(components("methods")) - {BASE, *WANTED}, key=stated_costs().__getitem__)
    first: dict[str, Method] = {name: component("methods", name) for name in WANTED[:2]}
    return {**first, **loops, **{name: component("methods", name) for name in (*WANTED[2:], *rest)}}


def row_of(job: Job, given: Problem, method: Method, counted: float | None) -> Row:
    """Time a method's step in turns with standard training's."""
    base: Method = component("methods", BASE)
    calls = {BASE: step(base, given, "bf16"), "own": step(method, given, "bf16")}
    timing = compare(calls, 1 if job.tiny else 9, base=BASE, device=str(job.device))
    found, batch = timing["own"], len(given.batch.x)
    standard = timing[BASE].seconds
    facts = {"images_per_second": batch / found.seconds, "standard_images_per_second": batch / standard}
    return {"batch": batch, "counted": counted, **found._asdict(), **facts}


def counted(job: Job, method: Method) -> float:
    """Return a step's counted arithmetic in standard steps; the number of images does not matter."""
    given = problem(job, COUNTED)
    return training_cost(method, given.model, given.batch, given.threat)


def guard_cost(job: Job, given: Problem) -> Row:
    """Return what a guard's look and probe take, in standard steps, and what that adds to a step on the average."""
    guard, batch, base = Guard(every=EVERY), given.batch, component("methods", BASE)
    some = batch.select(slice(0, guard.images))
    calls: dict[str, Callable[[], object]] = {
        BASE: step(base, given, "bf16"),
        "look": lambda: probe(given.model, some, THREAT),
        "probe": lambda: withstanding(given.model, some, THREAT, guard.probe_steps, seeded(0, device=some.x.device)),
    }
    timing = compare(calls, 1 if job.tiny else 9, base=BASE, device=str(job.device))
    looks, probes = timing["look"].ratio, timing["probe"].ratio
    added = looks / guard.every + (looks + probes) / guard.probe_every
    return {"batch": len(batch.x), "look": looks, "probe": probes, "every": guard.every, "added": added}


def measure(job: Job) -> None:
    """Measure with kernels chosen for these shapes."""
    with fixed_shapes():
        every_row(job)


def every_row(job: Job) -> None:
    """Measure batch by batch, then what is compiled; hand-written standard training is the method itself."""
    sizes = (8,) if job.tiny else (128, 512)
    counts = cache(lambda name: counted(job, candidates()[name]))
    for size in sizes:
        given = problem(job, size)
        for name, method in candidates().items():
            job.row(f"{name}, {size}", lambda m=method, n=name, g=given: row_of(job, g, m, counts(n)))  # type: ignore[misc]
        job.row(f"guard, {size}", lambda g=given: guard_cost(job, g))  # type: ignore[misc]
    if job.device.type == "cpu":
        return
    for size in sizes:
        torch.compiler.reset()  # another batch would else be compiled for any size
        given = problem(job, size, compiled=True)
        for name in COMPILED:
            method = component("methods", name)
            job.row(f"{name}, {size}, compiled", lambda m=method, g=given: row_of(job, g, m, None), least=30)  # type: ignore[misc]
