"""Images and networks of the pieces, and what of them is kept in OUT: weights in two files, records in one."""

import inspect
import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gpu_pieces.job import Job, OutOfTime
from planish.attacks.suites import Suite
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.data.images import Images
from planish.data.readers.npz import read_npz
from planish.evaluation.adversarials import KeptProgress
from planish.evaluation.at_work import Update
from planish.evaluation.evaluate import evaluate_steps
from planish.models import Normalized, build
from planish.records import evaluation as results
from planish.records.evaluation import Evaluation
from planish.registry import resolve
from planish.storage.files import write_bytes

THREAT = Linf(8 / 255)
CLASSES = 10
RECORDS = "records.zip"
WEIGHTS = ("network-1.safetensors", "network-2.safetensors")
"""Two files, because none may be larger than 16 MB."""


def images(job: Job, split: str) -> Images:
    """Return the images of a split: of the data, a few of them if tiny, or drawn ones where there are no data."""
    count = {"train": 256, "test": 12}[split] if job.tiny else None
    if job.data is None:
        assert count is not None
        return drawn(count, seed=len(split))
    return read_npz(job.data, split, count)


def drawn(count: int, seed: int, side: int = 16) -> Images:
    """Return images of ten classes that can be learnt: a pattern for each, and noise."""
    pattern = torch.rand(CLASSES, 3, side, side, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    x = pattern[labels] * 0.8 + 0.2 * torch.rand(count, 3, side, side, generator=generator)
    return Images.numbered((x * 255).to(torch.uint8), labels, tuple(map(str, range(CLASSES))), "drawn")


def width(job: Job) -> int:
    """Return the width of the networks: the papers', or one that only shows that everything runs."""
    return 4 if job.tiny else 64


def network(job: Job, activation: str, seen: Images | None = None) -> nn.Module:
    """Return a PreActResNet-18 on the device, channels last, normalized by what it has seen; the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build("preact-resnet-18", classes=CLASSES, channels=3, width=width(job), activation=activation)
    model = Normalized(plain, (0.5,) * 3, (0.25,) * 3)
    if seen is not None:
        pixels = seen.first(10_000).float_pixels()
        model.mean.copy_(pixels.mean((0, 2, 3)).view_as(model.mean))
        model.std.copy_(pixels.std((0, 2, 3)).clamp(min=1e-3).view_as(model.std))
    return model.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def batch_of(job: Job, count: int, side: int = 32, model: nn.Module | None = None) -> Batch:
    """Return drawn images on the device, channels last, with the labels that the model gives them, if one is given."""
    some = drawn(count, 1, 16 if job.tiny else side).to(job.device).as_batch()
    some = some._replace(x=some.x.contiguous(memory_format=torch.channels_last))
    if model is None:
        return some
    with torch.no_grad():
        logits = model(some.x)
    return some._replace(labels=logits.argmax(1), logits=logits)


def tested(job: Job) -> Batch:
    """Return the test images on the device, channels last."""
    everything = images(job, "test").to(job.device).as_batch()
    return everything._replace(x=everything.x.contiguous(memory_format=torch.channels_last))


def component(package: str, name: str, **known: Any) -> Any:
    """Return an attack, method or suite by name, told what it wants to know.

    `planish.runs.config` does this for users and checks it by pydantic, which a bare machine has not.
    """
    built, numbers = resolve(package, name)
    wanted = inspect.signature(built).parameters
    return built(**{**{key: value for key, value in known.items() if key in wanted}, **numbers})


def keep(job: Job, model: nn.Module, facts: dict[str, Any]) -> None:
    """Write the weights into OUT, kernels and matrices in half precision, and give the model what was written."""
    tensors = {name: _halved(value) for name, value in model.state_dict().items()}
    parts: list[dict[str, Tensor]] = [{}, {}]
    sizes = [0, 0]
    for name, value in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        place = sizes.index(min(sizes))
        parts[place][name] = value
        sizes[place] += value.nbytes
    for file, part in zip(WEIGHTS, parts, strict=True):
        write_bytes(save(part, {"gpu": json.dumps(facts)}), job.out / file)
    model.load_state_dict(tensors)


def _halved(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and value.ndim in (2, 4) else value


def kept(job: Job, model: nn.Module) -> bool:
    """Load the weights in OUT into the model; False if there are none, or if they are of another network."""
    if not all((job.out / file).exists() for file in WEIGHTS):
        return False
    tensors = {name: value for file in WEIGHTS for name, value in load_file(job.out / file).items()}
    own = {name: value.shape for name, value in model.state_dict().items()}
    if own != {name: value.shape for name, value in tensors.items()}:
        return False
    model.load_state_dict(tensors)
    return True


def judged(job: Job, name: str, model: nn.Module, some: Batch, suites: Mapping[str, Suite]) -> Evaluation:
    """Judge images by suites; the record in OUT is up to date after every stage, and gone on with.

    Raises OutOfTime when the time is over, the stages that were through being kept.
    """

    def watch(update: Update) -> None:
        if job.left() < 0:
            raise OutOfTime

    options: dict[str, Any] = {"chunk": 250 if job.device.type == "cpu" else 1000, "precision": "bf16"}
    options |= {"about": {"model": {"name": name}}, "on_chunk": watch}
    unfinished = KeptProgress(job.work / f"{name}.progress.npz")
    try:
        steps = evaluate_steps(
            model, some, threat=THREAT, attacks=suites, earlier=record(job, name), unfinished=unfinished, **options
        )
        for step in steps:
            put(job, name, step.evaluation)
    except BadInput:  # the record is of another network: this call trained its own
        for step in evaluate_steps(model, some, threat=THREAT, attacks=suites, **options):
            put(job, name, step.evaluation)
    unfinished.forget()
    return step.evaluation


def planish_suite() -> dict[str, Suite]:
    """Return planish's own suite, as `judged` takes it."""
    return {"planish-suite": component("suites", "planish-suite", classes=CLASSES)}


def record(job: Job, name: str) -> Evaluation | None:
    """Return a record of OUT."""
    found = _records(job).get(f"{name}.npz")
    if found is None:
        return None
    path = job.work / f"{name}.npz"
    write_bytes(found, path)
    return results.load(path)


def put(job: Job, name: str, evaluation: Evaluation) -> None:
    """Put a record into OUT's one file of records, as `planish.records` writes it, in place of the earlier."""
    path = job.work / f"{name}.npz"
    results.save(evaluation, path)
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file, held in sorted({**_records(job), path.name: path.read_bytes()}.items()):
            archive.writestr(file, held)
    write_bytes(content.getvalue(), job.out / RECORDS)


def _records(job: Job) -> dict[str, bytes]:
    if not (job.out / RECORDS).exists():
        return {}
    with zipfile.ZipFile(job.out / RECORDS) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def verdict(evaluation: Evaluation) -> dict[str, Any]:
    """Return what a record says, for a row: accuracies with intervals, seconds and passes of all stages."""
    clean, robust = evaluation.clean_accuracy(), evaluation.robust_accuracy()
    seconds = evaluation.meta["clean"]["seconds"] + sum(column.seconds for column in evaluation.columns)
    passes = sum(column.forwards + column.backwards for column in evaluation.columns)
    count = len(evaluation.labels)
    return {
        "images": count,
        "clean": str(clean),
        "robust": str(robust),
        "accuracy": robust.value,
        "interval": [robust.low, robust.high],
        "seconds": seconds,
        "images_per_second": count / seconds,
        "passes_per_image": passes / count,
        "stages": {column.name: round(column.seconds, 3) for column in evaluation.columns},
    }
