"""Trained models judged into folders, and folders read back, for a report or side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from planish.attacks.transfer import Surrogate, same_classes
from planish.core.arguments import check_logits, device_named, path_of, seed_of, shown
from planish.core.batch import Batch
from planish.core.errors import BadInput, Unlike, between
from planish.core.modes import Counted, Precision
from planish.core.threat import ThreatModel
from planish.core.words import number_of
from planish.data.classes import Classes, matched, numbered_as
from planish.data.listing import Listing
from planish.data.on_demand import OnDemand, on_demand
from planish.data.source import check_there, find_fitting, remarks
from planish.evaluation import distances
from planish.evaluation.adversarials import KeptProgress
from planish.evaluation.adversarials import verify as verify_images
from planish.evaluation.at_work import OnChunk
from planish.evaluation.evaluate import evaluate_steps
from planish.evaluation.naming import attacks_of, distance_attacks, wanted
from planish.evaluation.unions import threats_of
from planish.models import Normalized, build, is_borrowed
from planish.models.onnx import is_onnx, load_onnx
from planish.records import audit as audits
from planish.records import corruptions as corruption_records
from planish.records import distances as distance_records
from planish.records import evaluation as results
from planish.records.audit import Audit
from planish.records.corruptions import Corruptions
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.shards import ImageShard
from planish.records.verified import Verified
from planish.report import Entry, Table
from planish.report.audited import headline_rows, side_by_side, told_apart
from planish.report.tables import GALLERY
from planish.runs.beside import KeptBeside, load_gallery
from planish.runs.config import LARGEST_SIDE
from planish.runs.given import EIGHT_BIT, aimed, check_targets
from planish.runs.names import audited_apart, entry_names, name_of, refuse_twice
from planish.runs.places import WRITTEN, check_out, clear, refuse_taken
from planish.runs.run import BEST, WEIGHTS, load_run, training_of
from planish.runs.shards import cut

Step = TypeVar("Step")
EVALUATION, PROGRESS, DISTANCES = results.RECORD, "progress.npz", distance_records.RECORD
SOME_CLASSES = 10
"""Classes for which attacks are tried before the model is there to say how many it has."""


@dataclass(frozen=True)
class LoadedModel:
    """A model to be judged: its name, what is known of it and of its training, and notes on its files."""

    model: nn.Module
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """Return what a record says of the model, besides its digest."""
        return {"name": self.name} | {key: self.about[key] for key in ("normalization",) if key in self.about}


@dataclass(frozen=True)
class EvaluationConfig:
    """What to judge a model on. attacks: names such as "pgd-50-10". limit: the first so many test images.

    precision: of the attacks' search, "float32" or "bf16"; verdicts are float32 at least. keep_images: save the
    adversarial images too, for `verify`. surrogates: other models, each as `subject` takes it, for `transfer`. size:
    pixels that image files are brought to; None = what the model was trained for, if that is known. eot: draws of a
    random model for each image. classes: how the model numbers its classes, as `data.classes.Classes`; None = as it
    says itself, or as the data does. targets: a file of the classes that images are driven to, as `aimed` reads it.
    shard: only this part of the images. after: a folder with a record of all shards, by which a suite chooses what a
    shard does next. also: further threats, in each of which an image must be robust.
    """

    data: str
    threat: ThreatModel
    attacks: tuple[str, ...]
    limit: int | None = None
    seed: int = 0
    precision: Precision = "float32"
    keep_images: bool = False
    surrogates: tuple[str, ...] = ()
    size: int | None = None
    eot: int = 1
    classes: Classes | None = None
    targets: str | None = None
    shard: ImageShard | None = None
    after: str | None = None
    also: tuple[ThreatModel, ...] = ()

    def __post_init__(self) -> None:
        seed_of(self.seed)
        between(1, LARGEST_SIDE, size=self.size)
        if self.after is not None and self.shard is None:
            raise BadInput("after says what a shard goes on with, and no shard is given; a whole record takes resume")
        if len(threats_of([*self.threats]).threats) > 1 and self.shard is not None:
            raise BadInput("several threats are judged in one process: leave the shard out, or give one threat")

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """All threats, in order."""
        return (self.threat, *self.also)


def check_task(task: EvaluationConfig) -> None:
    """Raise BadInput for attacks that there are not, and for data that do not lie there: before anything is loaded."""
    lenders = [name for name in task.attacks if "surrogates" in wanted(name)]
    if task.surrogates and task.attacks and not lenders:
        raise BadInput("surrogates are given, and no attack that uses them: add transfer to the attacks")
    check_targets(task.targets, task.attacks)
    tried = [name for name in dict.fromkeys(task.attacks) if name not in lenders or not task.surrogates]
    for threat in task.threats:
        attacks_of(tried, SOME_CLASSES, norm=threat.name)
    check_there(task.data, "test", task.limit)


def check_distances(task: EvaluationConfig) -> None:
    """Raise BadInput as `check_task` does, of attacks that measure distances."""
    distance_attacks([*dict.fromkeys(task.attacks)], SOME_CLASSES, norm=task.threat.name)
    check_there(task.data, "test", task.limit)


def load_model(spec: str | Path, device: torch.device | str = "cpu", built_by: str | None = None) -> LoadedModel:
    """Return the model of a run folder, "module:function", "file.py:function", a library's "timm:..." or an ONNX file.

    device: where it is brought to. built_by: for a run folder, as in `load_run`. Raises BadInput.
    """
    device, spec = device_named(device), str(path_of(spec)) if isinstance(spec, Path) else spec
    if not isinstance(spec, str):
        raise BadInput(f"a model to load is a folder, a file or a name, not {shown(spec)}: a module needs no loading")
    folder, name = Path(spec), name_of(spec)
    if spec.startswith("hf://") or (folder / WEIGHTS).exists() or (folder.name == BEST and folder.exists()):
        run = load_run(spec, built_by)
        return LoadedModel(run.model.to(device), name, run.about, training_of(run.folder or folder), run.notes)
    if is_onnx(spec):
        return LoadedModel(load_onnx(folder).to(device), name)
    if ":" in spec:
        model = build(spec, classes=0, channels=0).to(device)
        known = model.stated() if isinstance(model, Normalized) else {}
        return LoadedModel(model.eval() if is_borrowed(spec) else model, name, known)
    raise BadInput(
        f"no model at '{spec}': give a run folder that holds {WEIGHTS}, package.module:function, "
        "file.py:function, timm:NAME, hf:NAME, robustbench:NAME, torchvision:NAME, hf://USER/REPO or FILE.onnx"
    )


def images_to_judge(
    task: EvaluationConfig, model: Mapping[str, Any], at_most: int | None = None
) -> tuple[Batch, dict[str, Any], list[str]]:
    """Return the test images in memory, what is known of the data, and warnings; see `set_to_judge`."""
    images, about, warnings = set_to_judge(task, model, at_most)
    return images if isinstance(images, Batch) else images.select(slice(None)), about, warnings


def set_to_judge(
    task: EvaluationConfig, model: Mapping[str, Any], at_most: int | None = None
) -> tuple[Batch | OnDemand, dict[str, Any], list[str]]:
    """Return the test images, what is known of the data, and warnings.

    Image files that take more than a block of memory are read when they are wanted. model: what is known of the model.
    at_most: so many images where the task has no limit.
    """
    limit = at_most if task.limit is None else task.limit
    size, channels = model.get("size") if task.size is None else task.size, model.get("channels", 1)
    images = find_fitting(task.data, "test", limit, size)
    asked = task.limit or 0
    warnings = [f"asked for {number_of(asked)}, {images.name} has {len(images)}"] if len(images) < asked else []
    warnings += remarks(images, task.data, limit)
    if task.classes is None:
        images, told = matched(images, model.get("classes", images.classes))
    else:
        images, told = numbered_as(images, task.classes), []
    about = {"name": images.name, "classes": list(images.classes), "images": len(images)}
    about |= {"numbered": True} if task.classes is not None else {}
    about |= {"files": images.inventory.words()} if images.inventory.files else {}
    if isinstance(images, Listing):
        return on_demand(images, size, channels), about, warnings + told
    return images.in_channels(channels).as_batch(), about, warnings + told


def evaluate_into(
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    on_chunk: OnChunk | None = None,
    built_by: str | None = None,
) -> Iterator[Evaluation]:
    """Judge into a folder: yield the record after the clean pass and each attack, it and a gallery saved by then.

    With resume, attacks that the folder's record already holds are not run again; with overwrite, what planish has
    written there in judging is replaced. built_by: of surrogates, as in `load_model`. Raises BadInput if the folder
    holds a record without either, Unlike with resume if it is of another model, data, threat or seed, or of attacks
    with other surrogates.
    """
    check_task(task)
    check_out(folder, "evaluation")
    path = folder / EVALUATION
    whole, data, warnings = set_to_judge(task, judged.about)
    whole, threats = aimed(whole, task.targets, data["classes"]), [one.among(whole.indices) for one in task.threats]
    found = results.load(path) if path.exists() and not overwrite else None
    decided = None if task.after is None else results.load(Path(task.after) / EVALUATION)
    part = cut(task.shard, whole, task.seed, data, decided)
    images = part.images.to(device)
    others = surrogates_of(judged, task, images.select(slice(0, 1)), built_by)
    about: dict[str, Any] = {"model": judged.facts(), "data": data, "training": judged.training}
    about |= {"notes": [*judged.notes, *warnings], **part.about}
    after = None if decided is None else (Path(str(task.after)), decided)
    kept, progress = KeptBeside(folder, images, task.keep_images, resume, after), KeptProgress(folder / PROGRESS)
    going_on: dict[str, Any] = {"earlier": part.further(found), "unfinished": progress, "share": part.share}
    going_on |= {"x_adv": kept.left(), "on_block": kept.add}
    options: dict[str, Any] = {"seed": task.seed, "precision": task.precision, "about": about, "on_chunk": on_chunk}
    options |= {"attacks": [*dict.fromkeys(task.attacks)], "surrogates": others, "eot": task.eot}
    begin = partial(evaluate_steps, judged.model, images, threat=threats, **options, **going_on)
    for step in _allowed(begin, folder, "evaluation", resume, overwrite):
        kept.save(step)
        results.save(step.evaluation, path)
        progress.forget()
        yield step.evaluation
    if task.keep_images and task.threat.levels == EIGHT_BIT:
        kept.write_pngs(step)


def _allowed(
    begin: Callable[[], Iterator[Step]], folder: Path, kind: str, resume: bool, overwrite: bool
) -> Iterator[Step]:
    """Begin work whose arguments are checked when it begins, in a folder that is free, gone on with or overwritten.

    Raises BadInput for a record that is in the way, Unlike with resume for one of something else.
    """
    try:
        steps, alike = begin(), True
    except Unlike:
        if resume or overwrite or not (folder / WRITTEN[kind][0]).exists():
            raise
        steps, alike = iter(()), False
    if overwrite:
        clear(folder, kind)
    elif not resume:
        refuse_taken(folder, kind, resumes=alike)
    yield from steps


def surrogates_of(judged: LoadedModel, task: EvaluationConfig, image: Batch, built_by: str | None) -> list[Surrogate]:
    """Return the models that the task names, each tried on one image. Raises BadInput if one does not fit."""
    found = [load_model(spec, image.x.device, built_by) for spec in task.surrogates]
    for spec, other in zip(task.surrogates, found, strict=True):
        try:
            lent = check_logits(Counted(other.model), image)
        except BadInput as error:
            raise BadInput(f"surrogate '{spec}': {error}") from error
        same_classes(spec, lent, check_logits(Counted(judged.model), image))
    return [Surrogate.of(other.name, other.model) for other in found]


def measure(
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Distances]:
    """Measure adversarial distances into a folder: yield the record after each attack, saved by then.

    task.threat gives norm and box; with a radius above 0 an image is left alone once one within it is found. resume,
    overwrite: as in `evaluate_into`. Raises BadInput as that does, and for attacks that search a ball of fixed radius.
    """
    check_distances(task)
    check_out(folder, "distances")
    path = folder / DISTANCES
    images, data, warnings = set_to_judge(task, judged.about)
    part = cut(task.shard, images, task.seed, data)
    about = {"model": judged.facts(), "data": data, "notes": [*judged.notes, *warnings], **part.about}
    options: dict[str, Any] = {"seed": task.seed, "about": about}
    options["earlier"] = distance_records.load(path) if path.exists() and not overwrite else None
    names = [*dict.fromkeys(task.attacks)]
    begin = partial(distances.measure, judged.model, part.images.to(device), task.threat, names, **options)
    for step in _allowed(begin, folder, "distances", resume, overwrite):
        distance_records.save(step, path)
        yield step


def verify(judged: LoadedModel, task: EvaluationConfig, path: Path, *, device: torch.device | str = "cpu") -> Verified:
    """Judge saved adversarial images afresh, trusting nothing but the model, the test set and the images.

    Each is compared with the test image of its index. Raises BadInput if the test set lacks one or shapes differ.
    """
    images, _, _ = set_to_judge(task, judged.about)
    source = f"{task.data} (limit {task.limit})"
    threats = [*task.threats]
    return verify_images(judged.model, images.to(device), None, path, threats, eot=task.eot, source=source)


def entries(folders: Sequence[Path]) -> list[Entry]:
    """Return a report's entries from evaluated folders, seconds relative to standard training's. Raises BadInput.

    Entries of one name are told apart by what judged them, or else by their folders.
    """
    refuse_twice(folders)
    found = [_entry(folder) for folder in folders]
    names = entry_names(found, folders)
    base = next((entry.training for entry in found if entry.training and entry.method == "standard"), None)
    seconds = float(base["seconds"]) if base else 0.0
    for place, entry in enumerate(found):
        own: dict[str, Any] = {"name": names[place]}
        if entry.training is not None and seconds > 0:
            own["training"] = {**entry.training, "relative_seconds": float(entry.training["seconds"]) / seconds}
        found[place] = replace(entry, **own)
    return found


def _entry(folder: Path) -> Entry:
    if not (folder / EVALUATION).exists():
        raise BadInput(f"{folder} holds no {EVALUATION}; make one with: planish evaluate ... --out {folder}")
    record = results.load(folder / EVALUATION)
    images: Any = load_gallery(folder / GALLERY) if (folder / GALLERY).exists() else None
    name = record.meta.get("model", {}).get("name", folder.name)
    also = _by_radius(folder, record), _corruptions(folder, record)
    return Entry(name, record, record.meta.get("training"), images, *also)


def _corruptions(folder: Path, record: Evaluation) -> Corruptions | None:
    """Return what the same weights make of common corruptions, if the folder says."""
    if not (folder / corruption_records.RECORD).exists():
        return None
    found = corruption_records.load(folder / corruption_records.RECORD)
    return found if found.meta["model"]["digest"] == record.meta["model"].get("digest") else None


def _by_radius(folder: Path, record: Evaluation) -> list[tuple[float, float]] | None:
    """Return accuracy by radius from the folder's distances, if they are of the same model, images and norm."""
    if not (folder / DISTANCES).exists():
        return None
    found = distance_records.load(folder / DISTANCES)
    same = all(found.meta[key].get("digest") == record.meta[key].get("digest") for key in ("model", "data"))
    return found.curve() if same and found.meta["norm"] == record.norm else None


@dataclass(frozen=True)
class Comparison:
    """What the folders hold: evaluations, and audits, all at one norm and radius."""

    entries: list[Entry]
    audits: list[Audit]

    def write(self, out: Path, title: str, provenance: Mapping[str, Any]) -> Path:
        """Write the page and its numbers, and return the page's path. Raises BadInput."""
        from planish.report import write_comparison

        return write_comparison(self.entries, out, title, provenance, self.audits)

    def tables(self) -> list[Table]:
        """Return the tables for the screen, beside the evaluations' own."""
        from planish.report.pairs import paired_rows, pairs

        named = told_apart(self.audits)
        audits = [headline_rows(named), side_by_side(named)] if named else []
        return [*([paired_rows(pairs(self.entries))] if len(self.entries) > 1 else []), *audits]


def comparison(folders: Sequence[Path]) -> Comparison:
    """Read the folders; one that holds an evaluation and an audit gives both. Raises BadInput for one with neither."""
    refuse_twice(folders)
    judged = [folder for folder in folders if (folder / EVALUATION).exists()]
    audited = [folder for folder in folders if (folder / audits.RECORD).exists()]
    for folder in folders:
        if folder not in judged and folder not in audited:
            make = f"planish evaluate ... --out {folder} or planish audit ... --out {folder}"
            raise BadInput(f"{folder} holds neither {EVALUATION} nor {audits.RECORD}; make one with: {make}")
    found = [audits.load(folder) for folder in audited]
    for folder, audit in zip(audited, found, strict=True):
        if not audit.complete:
            raise BadInput(f"the audit in {folder} was cut short; its command goes on with --out {folder} --resume")
    told_apart(found)
    return Comparison(entries(judged), audited_apart(found, audited))
