"""The same images on the device and on the CPU: verdicts and margins, image by image, and logits."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gpu_pieces.job import Job, Row
from gpu_pieces.network import CLASSES, THREAT, component, drawn
from planish.attacks import Attack, Within, run
from planish.attacks.transfer import Surrogate
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.randomness import seeded
from planish.core.threat import ThreatModel
from planish.evaluation.evaluate import evaluate_steps
from planish.models import build
from planish.search.ascent import Adversarials

IMAGES = 16
FEW = {"steps": 3, "restarts": 2, "targets": 2, "queries": 40, "samples": 5, "searches": 2}
FEW_FAR = {"steps": 12, "rounds": 5, "outer": 4, "inner": 20, "queries": 60}
"""Few of everything, where an attack has such options; distance attacks need some more steps to get anywhere."""
MARGIN, LOGITS, HALF = 1e-3, 1e-3, 0.05
"""The most that margins and logits may differ for another order of sums, and relative to the largest in bf16."""


def small(seed: int = 0) -> nn.Module:
    """Return a small network with batch norm, in evaluation mode, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build("small-cnn", classes=CLASSES, channels=3, width=8, activation="softplus").eval()


def labelled(model: nn.Module, count: int = IMAGES) -> Batch:
    """Return drawn images on the CPU with the labels that the model gives them, every fifth a wrong one."""
    some = drawn(count, seed=1).as_batch()
    labels = logits_of(model, some.x).argmax(1)
    return some._replace(labels=torch.where(some.indices % 5 == 4, (labels + 1) % CLASSES, labels))


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device, channels last."""
    x = batch.x.to(device).contiguous(memory_format=torch.channels_last)
    return Batch(x, batch.labels.to(device), batch.indices.to(device))


def few(name: str, device: torch.device) -> Attack:
    """Return the attack with few steps and restarts, a distance attack as an attack in a ball."""
    known = {"classes": CLASSES, "surrogates": (Surrogate("other", "0", small(1).to(device)),)}
    made = component("attacks", name, **known, **FEW)
    if hasattr(made, "distances"):
        return Within(component("attacks", name, **known, **{**FEW, **FEW_FAR}))
    return made  # type: ignore[no-any-return]


def attack(job: Job, name: str, threat: ThreatModel) -> Row:
    """Run an attack on both, and on the device in bf16: the same verdicts, images in the ball, honest scores."""
    model = small()
    batch = labelled(model)
    there, on = deepcopy(model).to(job.device, memory_format=torch.channels_last), moved(batch, job.device)  # type: ignore[call-overload]
    ours = run(few(name, torch.device("cpu")), model, batch, threat, generator=seeded(0))
    device = few(name, job.device)
    theirs = run(device, there, on, threat, generator=seeded(0))
    half = run(device, there, on, threat, generator=seeded(0), precision="bf16")
    problems = [
        *(f"float32: {text}" for text in dishonest(device, theirs, there, on, threat)),
        *(f"bf16: {text}" for text in dishonest(device, half, there, on, threat)),
    ]
    return compared(ours.score, theirs.score, problems) | {"broken_bf16": int((half.score >= 0).sum())}


def dishonest(attack: Attack, found: Adversarials, model: nn.Module, batch: Batch, threat: ThreatModel) -> list[str]:
    """Return what is wrong with what an attack says of its images."""
    wrong = []
    parts = {name: part.device.type for name, part in found._asdict().items()}
    if {*parts.values()} != {batch.x.device.type}:
        wrong.append(f"not all on the device: {parts}")
    outside = int((~threat.feasible(found.x_adv, batch.x)).sum())
    if outside:
        wrong.append(f"{outside} images outside the ball")
    score = attack.goal(batch._replace(logits=logits_of(model, batch.x)))[0](logits_of(model, found.x_adv))
    apart = float((score - found.score).abs().max())
    if not apart <= MARGIN:
        wrong.append(f"scores are {apart:.2g} from a fresh forward's")
    return wrong


def compared(ours: Tensor, theirs: Tensor, problems: list[str]) -> Row:
    """Return how far scores by the CPU and by the device agree, image by image."""
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    apart = (ours - theirs).abs()
    verdicts = ((ours >= 0) != (theirs >= 0)).nonzero().squeeze(1).tolist()
    far = (apart > MARGIN).nonzero().squeeze(1).tolist()
    status = "failed" if problems else "differs" if verdicts else "ok"
    return {
        "status": status,
        "images": len(ours),
        "broken_cpu": int((ours >= 0).sum()),
        "broken": int((theirs >= 0).sum()),
        "verdicts_differ": verdicts,
        "margins_differ": {str(row): [float(ours[row]), float(theirs[row])] for row in far[:8]},
        "largest_difference": float(apart.max()),
        "problems": problems,
    }


def suite(job: Job, name: str, count: int) -> Row:
    """Judge the same images by a suite on both."""
    model = small()
    batch, margins = labelled(model, count), []
    attacks = {name: component("suites", name, classes=CLASSES, norm="Linf")}
    for device in (torch.device("cpu"), job.device):
        own = deepcopy(model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        *_, last = evaluate_steps(own, moved(batch, device), threat=THREAT, attacks=attacks)
        record = last.evaluation
        reached = [torch.from_numpy(column.margin).nan_to_num(-torch.inf) for column in record.columns]
        margins.append(torch.stack([torch.from_numpy(record.clean_margin), *reached]).amax(0))
    return compared(margins[0], margins[1], [])


def architecture(job: Job, name: str, options: dict[str, Any]) -> Row:
    """Compare the logits of a network, in float32 and in bf16, in both layouts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(name, classes=CLASSES, channels=3, **options).eval()
    x = drawn(4, seed=1, side=32).as_batch().x
    expected = logits_of(model, x)
    scale = float(expected.abs().max())
    apart, problems = {}, []
    for layout in (torch.contiguous_format, torch.channels_last):
        there = deepcopy(model).to(job.device, memory_format=layout)  # type: ignore[call-overload]
        on = x.to(job.device).contiguous(memory_format=layout)
        with torch.no_grad(), torch.autocast(job.device.type, torch.bfloat16):
            half = there(on).float()
        for kind, found, most in (("float32", logits_of(there, on), LOGITS), ("bf16", half, HALF)):
            far = float((found.cpu() - expected).abs().max()) / scale
            apart[f"{kind}, {layout}"] = far
            if not far <= most:
                problems.append(f"{kind}, {layout}: logits are {far:.2g} of the largest apart")
    return {"status": "failed" if problems else "ok", "relative": apart, "problems": problems}
