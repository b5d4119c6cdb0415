"""What judging costs, on the network of the speedrun: attacks beside a hand-written loop and torchattacks, and suites.

Suites are judged stage by stage: what the time allows is kept, and the row says which stages and how many images.
"""

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from loops import hand_best
from timing import Problem, compare
from torch import nn

from gpu_pieces.job import Job, OutOfTime, Row
from gpu_pieces.network import CLASSES, THREAT, component, judged, kept, network, record, tested, verdict
from planish.attacks import run
from planish.attacks.suites import Fixed, Staged, Suite
from planish.core.arguments import logits_of
from planish.core.randomness import seeded
from planish.records.statistics import paired_interval

STEPS = 10
BASE = "planish"
SUITES = ("planish-suite", "autoattack")


def problem(job: Job) -> tuple[Problem, bool]:
    """Return the speedrun's network and test images, and whether it is trained: without one its weights are random."""
    model = network(job, "gelu").eval()
    trained = kept(job, model)
    some = tested(job).select(slice(0, 16 if job.tiny else 512))
    return Problem(model, some._replace(logits=logits_of(model, some.x)), THREAT), trained


def calls(given: Problem, attack: str, steps: int) -> dict[str, Callable[[], object]]:
    """Return who runs an attack: planish, in float32 and bf16, a hand-written loop, torchattacks if it is there."""
    frozen = deepcopy(given.model).requires_grad_(False)
    own = component("attacks", f"{attack}-{steps}-1", classes=CLASSES)
    options: dict[str, Any] = {"chunk": len(given.batch.x)}

    def ours(precision: str) -> object:
        return run(own, given.model, given.batch, THREAT, generator=seeded(0), precision=precision, **options)  # type: ignore[arg-type]

    found: dict[str, Callable[[], object]] = {BASE: lambda: ours("float32"), "planish, bf16": lambda: ours("bf16")}
    if attack == "pgd":
        found["hand-written"] = lambda: hand_best(frozen, given, steps)
    if find_spec("torchattacks") is not None:
        found["torchattacks"] = lambda: theirs(attack, given.model, steps, given)
    return found


def theirs(attack: str, model: nn.Module, steps: int, given: Problem) -> object:
    """Attack by torchattacks, and judge by a forward what its PGD returns unjudged."""
    import torchattacks

    radius, x, labels = THREAT.radius, given.batch.x, given.batch.labels
    if attack != "pgd":
        return torchattacks.APGD(model, eps=radius, steps=steps)(x, labels)
    x_adv = torchattacks.PGD(model, eps=radius, alpha=radius / 4, steps=steps)(x, labels)
    with torch.no_grad():
        return model(x_adv)


def attack_row(job: Job, given: Problem, trained: bool, attack: str) -> Row:
    """Time an attack by all who run it, in turns; the library that fails is left out, saying so."""
    steps = 2 if job.tiny else STEPS
    found, failed = {}, {}
    for name, call in calls(given, attack, steps).items():
        try:
            call()
            found[name] = call
        except Exception as error:
            if name == BASE or "CUDA error" in str(error):
                raise
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    timing = compare(found, 1 if job.tiny else 7, base=BASE, device=str(job.device))
    count = len(given.batch.x)
    by = {name: {**one._asdict(), "images_per_second": count / one.seconds} for name, one in timing.items()}
    return {"steps": steps, "images": count, "trained": trained, "by": by, "failed": failed}


def suite_of(job: Job, name: str) -> dict[str, Suite]:
    """Return a suite by name; if tiny, of AutoAttack its first attack alone."""
    made: Suite = component("suites", name, classes=CLASSES)
    return {name: Fixed(made.stages[:1]) if job.tiny and isinstance(made, Staged) else made}


def suite_row(job: Job, given: Problem, trained: bool, suite: str) -> Row:
    """Judge the first 500 images by a suite; where time runs out, what its finished stages say."""
    some = given.batch.select(slice(0, 8 if job.tiny else 500))._replace(logits=None)
    name = f"judging-{suite}"
    try:
        found, whole = judged(job, name, given.model, some, suite_of(job, suite)), True
    except OutOfTime:
        so_far = record(job, name)
        if so_far is None or not so_far.columns:
            raise
        job.left_out, found, whole = True, so_far, False
    return {"suite": suite, "trained": trained, "whole": whole, "partial": not whole, **verdict(found)}


def difference(job: Job) -> Row:
    """Compare the two suites image by image: how many more of the images stand after the first."""
    first, second = (record(job, f"judging-{suite}") for suite in SUITES)
    assert first is not None and second is not None
    gap = paired_interval(first.survivors(), second.survivors())
    return {
        "first": SUITES[0],
        "second": SUITES[1],
        "difference": gap.value,
        "interval": [gap.low, gap.high],
        "only_first_stands": gap.only_first,
        "only_second_stands": gap.only_second,
    }


def measure(job: Job) -> None:
    """Measure attacks, then suites."""
    given, trained = problem(job)
    for attack in ("pgd", "apgd-ce"):
        job.row(attack, lambda a=attack: attack_row(job, given, trained, a))  # type: ignore[misc]
    for suite in SUITES:
        job.row(suite, lambda s=suite: suite_row(job, given, trained, s), least=0 if job.tiny else 15)  # type: ignore[misc]
    if all(job.done(suite) and "error" not in job.rows[suite] for suite in SUITES):
        job.row("difference", lambda: difference(job), least=0)
