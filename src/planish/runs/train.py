"""An experiment carried out into a run folder: put together, trained, saved and resumed."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn

from planish.attacks import run
from planish.attacks.gradient import PGD
from planish.core.arguments import check_logits, logits_of
from planish.core.randomness import initialised, seeded
from planish.core.threat import ThreatModel
from planish.data.batches import Batches
from planish.data.classes import matched, named_places
from planish.data.images import Images, OnCorrupt, refuse
from planish.data.listing import Listing
from planish.data.source import check_there, find, remarks
from planish.data.stream import Streamed, default_workers
from planish.models import Normalized, is_borrowed
from planish.records.origin import provenance
from planish.registry import resolve
from planish.runs import run as runs
from planish.runs.config import Experiment, Named, to_toml
from planish.runs.places import clear
from planish.runs.run import CONFIG, METRICS, PROVENANCE, RESUME, WEIGHTS, architecture
from planish.runs.taken import known, refuse_data, refuse_other
from planish.storage.files import write_lines, write_sealed_json, write_text
from planish.storage.reading import headed, last_good
from planish.training.cost import training_cost
from planish.training.epochs import Epochs
from planish.training.loop import EpochRecord, fit, start
from planish.training.settings import Settings
from planish.training.state import State, go_on, to_go_on

COUNTED = 4
"""Images on which the cost of a training step is counted."""
PROBED = 512
"""Held-out images that a guard draws its probes from."""
SAMPLED = 512
"""Images that the normalization of a streamed set is estimated on."""


@dataclass(frozen=True)
class Prepared:
    """The parts of a run: training images, some or all of them in memory, held-out ones or None, untrained model."""

    images: Images | Listing
    sample: Images
    held_out: Images | None
    model: nn.Module


def prepare(experiment: Experiment, device: torch.device | str = "cpu", on_corrupt: OnCorrupt = refuse) -> Prepared:
    """Load or list the images and build the model. Raises BadInput, also if the model does not fit the images."""
    images, held_out = training_images(experiment, on_corrupt)
    sample, size = images, experiment.data.final_size
    if isinstance(sample, Listing):
        sample = sample.sample(SAMPLED).images(size, on_corrupt)
    if isinstance(held_out, Listing):
        held_out = held_out.images(size, on_corrupt).in_channels(sample.x.shape[1])
    model = new_model(experiment.model, sample, experiment.seed).to(device)
    check_logits(model, sample.first(2).to(device).as_batch())
    known = model.classes if isinstance(model, Normalized) else ()
    if known and None not in named_places(sample.classes, known):  # a published head keeps its order of the classes
        images, sample = matched(images, known)[0], matched(sample, known)[0]
        held_out = None if held_out is None else matched(held_out, known)[0]
    return Prepared(images, sample, held_out, model)


def training_images(
    experiment: Experiment, on_corrupt: OnCorrupt = refuse
) -> tuple[Images | Listing, Images | Listing | None]:
    """Return what is trained on, in memory or listed, and what is held out, if anything is. Raises BadInput."""
    data = experiment.data
    found = find(data.source, "train", data.limit)
    images = found.kept(data.stream, data.size, on_corrupt, resolutions=bool(data.resolutions))
    return images.split(data.validation, experiment.seed) if data.validation else (images, None)


def new_model(model: Named, images: Images, seed: int) -> nn.Module:
    """Build the model, its weights drawn from the seed, the global random state untouched."""
    with initialised(seed):
        network = architecture(model.name, model.options, len(images.classes), images.x.shape[1])
    if isinstance(network, Normalized) and ":" not in model.name:
        pixels = images.float_pixels().transpose(0, 1).flatten(1)
        network.mean.copy_(pixels.mean(1).view_as(network.mean))
        network.std.copy_(pixels.std(1).clamp(min=1e-3).view_as(network.std))
    if model.weights is not None:
        runs.load_start(Path(model.weights), network)
    return network.train() if is_borrowed(model.name) else network


def train_into(
    experiment: Experiment,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[EpochRecord]:
    """Train into a run folder, one record per finished epoch, everything saved by then.

    A killed run goes on with resume=True from where it was last saved (`settings.save_minutes`) and ends, on CPU,
    bit-identical; where the data lies may have changed, the data may not. With more epochs than the folder's run had,
    that run goes on: at the learning rates that a run of so many epochs has from there on.
    With images held out, the weights of the epoch that was most robust on them are kept beside the last ones.
    overwrite: what planish wrote into the folder is replaced, and what judged its model goes.
    Raises BadInput if the folder holds a run without either, Unlike if its configuration or data are others.
    """
    check_experiment(experiment)
    refuse_other(experiment, folder, resume, overwrite)
    saved = (folder / RESUME).exists() and not overwrite  # then the weights that it started from are not needed
    begun = replace(experiment, model=replace(experiment.model, weights=None)) if saved else experiment
    earlier = {} if overwrite else known(folder)
    corrupt = {*earlier.get("corrupt_images", [])}
    on_corrupt = corrupt.add if experiment.data.skip_corrupt else refuse
    prepared = prepare(begun, device, on_corrupt)
    runs.check_storable(prepared.model)
    refuse_data(folder, earlier, digest := prepared.images.digest())
    batches = batches_of(experiment, prepared, device, on_corrupt)
    if overwrite:
        clear(folder, "train")
    write_text(headed(to_toml(experiment)), folder / CONFIG)
    state = _state(prepared.model, experiment.settings, folder / RESUME if saved else None)
    origin = _origin(experiment, prepared, digest, device)
    write_sealed_json({**origin, "corrupt_images": sorted(corrupt)}, folder / PROVENANCE)
    probed = None if prepared.held_out is None else prepared.held_out.first(PROBED).to(device).as_batch()

    def keep() -> None:
        if experiment.data.skip_corrupt:
            write_sealed_json({**origin, "corrupt_images": sorted(corrupt)}, folder / PROVENANCE)
        runs.save_resume(folder / RESUME, to_go_on(state))

    also: dict[str, Any] = {"seed": experiment.seed, "guard": experiment.guard, "held_out": probed}
    also["after_step"] = Saver(state, experiment.settings.save_minutes, keep)
    how = (experiment.training_method, experiment.threat.model, batches, experiment.settings)
    for record in fit(state, *how, **also):
        more = {"corrupt_images": len(corrupt)} if experiment.data.skip_corrupt else {}
        checked = _checked(record, state, prepared.held_out, experiment, more)
        _save(state, folder, metadata(experiment, prepared.sample))
        keep()
        yield checked


def _state(model: nn.Module, settings: Settings, saved: Path | None) -> State:
    """Return the state of a training that begins, or goes on from where it was saved. Raises BadInput."""
    state = start(model, settings)
    if saved is not None:
        go_on(state, last_good(saved, runs.load_resume)[0])
    return state


def _checked(
    record: EpochRecord, state: State, held_out: Images | None, experiment: Experiment, more: Mapping[str, float]
) -> EpochRecord:
    """Return an epoch's record with what held-out images and `more` say of it, entered into the history."""
    found = {**_validated(state.deployed, held_out, experiment.threat.model, experiment.seed), **more}
    state.history[-1] |= {**found, "learning_rate": record.learning_rate, "seconds": record.seconds}
    return record._replace(metrics={**record.metrics, **found})


@dataclass
class Saver:
    """Called after each step: keeps the state whenever so many minutes have passed. Raises FloatingPointError."""

    state: State
    minutes: float
    keep: Callable[[], None]
    last: float = field(default_factory=lambda: monotonic())

    def __call__(self) -> None:
        """Keep the state if it is time, and worth keeping."""
        if monotonic() - self.last < 60 * self.minutes:
            return
        if not self.state.finite():
            raise FloatingPointError(
                f"the weights are not finite in epoch {self.state.epoch + 1}; lower the learning rate"
            )
        self.keep()
        self.last = monotonic()


def check_experiment(experiment: Experiment) -> None:
    """Raise BadInput for data that do not lie there, and for an unknown model: before anything is loaded."""
    check_there(experiment.data.source, "train")
    if not (":" in experiment.model.name or is_borrowed(experiment.model.name)):
        resolve("models", experiment.model.name)


def batches_of(experiment: Experiment, prepared: Prepared, device: torch.device | str, on_corrupt: OnCorrupt) -> Epochs:
    """Return the training batches, of images in memory or of streamed ones. Raises BadInput."""
    data, size, images = experiment.data, experiment.settings.batch_size, prepared.images
    if isinstance(images, Images):
        return Batches(images, size, data.augmentation, device)
    channels, height, width = prepared.sample.x.shape[1:]
    shape, sides = (channels, height, width), data.sides(experiment.settings.epochs)
    workers = default_workers() if data.workers is None else data.workers
    return Streamed(images, size, shape, data.augmentation, sides, device, workers, on_corrupt)


def _origin(experiment: Experiment, prepared: Prepared, digest: str, device: torch.device | str) -> dict[str, Any]:
    """Return where a run comes from, its images' digest, and what a training step costs in standard steps."""
    sample = prepared.sample.first(COUNTED).to(device).as_batch()
    cost = training_cost(experiment.training_method, prepared.model, sample, experiment.threat.model)
    return {
        **provenance(device),
        "configuration_digest": hashlib.sha256(to_toml(experiment).encode()).hexdigest(),
        **({"data_files": prepared.images.inventory.words()} if prepared.images.inventory.files else {}),
        "data_notes": remarks(prepared.images, experiment.data.source, experiment.data.limit),
        "data_name": prepared.images.name,
        "data_digest": digest,
        "training_cost": cost,
    }


def _validated(model: nn.Module, held_out: Images | None, threat: ThreatModel, seed: int) -> dict[str, float]:
    """Return clean and PGD-10 accuracy on the held-out training images; nothing where none are held out."""
    if held_out is None:
        return {}
    batch = held_out.to(next(model.parameters()).device).as_batch()
    logits = logits_of(model, batch.x)
    found = run(PGD(10, 1), model, batch._replace(logits=logits), threat, generator=seeded(seed))
    right = {"accuracy": logits.argmax(1) == batch.labels, "robust_accuracy": found.score < 0}
    return {f"validation_{name}": float(share.float().mean()) for name, share in right.items()}


def metadata(experiment: Experiment, images: Images) -> dict[str, Any]:
    """Return what a weights file must say so that its model can be built again."""
    return {
        "model": {"name": experiment.model.name, "options": experiment.model.options},
        "classes": list(images.classes),
        "channels": images.x.shape[1],
        "data": images.name,
        "size": experiment.data.final_size,
        "method": asdict(experiment.method),
        "threat": asdict(experiment.threat),
    }


def _save(state: State, folder: Path, about: dict[str, Any]) -> None:
    """Write metrics and weights, also as the best if they are; the resume file, which comes then, is what counts."""
    write_lines(state.history, folder / METRICS)
    runs.save_weights(folder / WEIGHTS, state.deployed, {**about, "epoch": state.epoch})
    robust = [entry.get("validation_robust_accuracy", -1.0) for entry in state.history]
    if robust[-1] > max(robust[:-1], default=-0.5):
        runs.save_weights(folder / runs.BEST, state.deployed, {**about, "epoch": state.epoch})
