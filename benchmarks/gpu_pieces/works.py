"""Does everything work on the device, and agree with the CPU? What fails is listed, and nothing here is timed.

Comparisons are of small networks with drawn images, in plain float32: every attack and suite image by image, a step of
every method, every architecture; then compiled networks, resumed training, memory, and whether an ascent makes the host
wait. A row says ok, differs or failed, and what it saw.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu_pieces import agreement, training
from gpu_pieces.job import Job, Row
from gpu_pieces.network import THREAT
from planish.core.threat import L2
from planish.registry import components

BALLS = (THREAT, L2(0.5))
ONLY = {"ddn": "L2", "carlini-wagner": "L2", "carlini-wagner-linf": "Linf", "sigma-zero": "L0"}
"""Attacks that know one norm only."""
FIRST = ("planish-at", "pgd", "seat", "seat-fl", "rs-fgsm", "n-fgsm", "llr", "fgsm", "free", "trades")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "preact-resnet-18": {"width": 8},
    "small-cnn": {"width": 8},
    "vgg-11": {"width": 8},
    "wide-resnet-10-1": {},
    "resnet": {},
    "resnext": {},
}
SUITES = {"planish-suite": 48, "autoattack": 8, "paper-seat": 4, "paper-llr": 2}
"""Images for each; paper-finlay's attacks are among the attacks."""


def plan(job: Job) -> dict[str, Callable[[], Row]]:
    """Return the checks by name, the most wanted first."""
    methods = [*FIRST, *sorted(set(components("methods")) - {*FIRST})]
    attacks = sorted(components("attacks"))
    checks: dict[str, Callable[[], Row]] = {
        "ascent": partial(training.ascent, job),
        "resume": partial(training.resume, job),
        "suite planish-suite": partial(
            agreement.suite, job, "planish-suite", 8 if job.tiny else SUITES["planish-suite"]
        ),
    }
    for name in methods:
        checks[f"method {name}"] = partial(training.method_step, job, name)
    for threat in BALLS[:1] if job.tiny else BALLS:
        for name in attacks:
            if ONLY.get(name, threat.name) == threat.name:
                checks[f"attack {name} {threat.name}"] = partial(agreement.attack, job, name, threat)
    for name, options in ARCHITECTURES.items():
        checks[f"model {name}"] = partial(agreement.architecture, job, name, options)
    checks["memory"] = partial(training.memory, job)
    for name in ("planish-at",) if job.tiny else ("planish-at", "pgd", "seat"):
        checks[f"compiled {name}"] = partial(training.compiled, job, name)
    for name, count in {} if job.tiny else SUITES.items():
        if name != "planish-suite":
            checks[f"suite {name}"] = partial(agreement.suite, job, name, count)
    return checks


def measure(job: Job) -> None:
    """Make the checks in order."""
    torch.backends.cudnn.allow_tf32 = False
    for name, check in plan(job).items():
        job.row(name, check)
