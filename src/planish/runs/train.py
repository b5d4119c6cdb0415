"""An experiment carried out: data, model and method put together, trained, saved and resumed."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish.attacks import run
from planish.attacks.gradient import PGD
from planish.core.arguments import check_logits, logits_of
from planish.core.errors import BadInput
from planish.core.randomness import initialised, seeded
from planish.core.threat import ThreatModel
from planish.data.batches import Batches
from planish.data.images import Images, OnCorrupt, refuse
from planish.data.listing import Listing
from planish.data.source import find
from planish.data.stream import Streamed, default_workers
from planish.models import Normalized, build
from planish.runs import checkpoint as checkpoints
from planish.runs.checkpoint import CONFIG, METRICS, PROVENANCE, RESUME, WEIGHTS
from planish.runs.config import Experiment, Named, parsed, read, to_toml
from planish.storage.files import write_json, write_text
from planish.storage.provenance import provenance
from planish.training.cost import training_cost
from planish.training.loop import EpochRecord, Epochs, fit, start
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
    return network


def architecture(name: str, options: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """Return a model of that name; a registered architecture untrained, with a still neutral normalization."""
    network = build(name, classes=classes, channels=channels, **options)
    return network if ":" in name else Normalized(network, (0.0,) * channels, (1.0,) * channels)


def train_into(
    experiment: Experiment, folder: Path, *, device: torch.device | str = "cpu", resume: bool = False
) -> Iterator[EpochRecord]:
    """Train into a run folder, one record per finished epoch, everything saved by then.

    A killed run goes on with resume=True from its last whole epoch and ends, on CPU, bit-identical; where the data
    lies may have changed, the data may not.
    Raises BadInput if the folder holds another configuration or other data, or a run without `resume`.
    """
    _refuse_other(experiment, folder, resume)
    corrupt = _left_out(folder)
    on_corrupt = corrupt.add if experiment.data.skip_corrupt else refuse
    prepared = prepare(experiment, device, on_corrupt)
    digest = prepared.images.digest()
    refuse_other_data(folder, digest)
    batches = _batches(experiment, prepared.images, prepared.sample, device, on_corrupt)
    write_text(to_toml(experiment), folder / CONFIG)
    state = start(prepared.model, experiment.settings)
    if (folder / RESUME).exists():
        go_on(state, checkpoints.load_resume(folder / RESUME))
    origin = _origin(experiment, prepared, digest, device)
    write_json({**origin, "corrupt_images": sorted(corrupt)}, folder / PROVENANCE)
    settings, method, threat = experiment.settings, experiment.training_method, experiment.threat.model
    probed = None if prepared.held_out is None else prepared.held_out.first(PROBED).to(device).as_batch()
    for record in fit(
        state, method, threat, batches, settings, seed=experiment.seed, guard=experiment.guard, held_out=probed
    ):
        checked = _validated(state.deployed, prepared.held_out, threat, experiment.seed)
        if experiment.data.skip_corrupt:
            checked["corrupt_images"] = len(corrupt)
            write_json({**origin, "corrupt_images": sorted(corrupt)}, folder / PROVENANCE)
        state.history[-1] |= {**checked, "learning_rate": record.learning_rate, "seconds": record.seconds}
        _save(state, folder, metadata(experiment, prepared.sample))
        yield record._replace(metrics={**record.metrics, **checked})


def _left_out(folder: Path) -> set[str]:
    """Return what the folder's run has left out so far."""
    path = folder / PROVENANCE
    return {*json.loads(path.read_text()).get("corrupt_images", [])} if path.exists() else set()


def _batches(
    experiment: Experiment,
    images: Images | Listing,
    sample: Images,
    device: torch.device | str,
    on_corrupt: OnCorrupt,
) -> Epochs:
    """Return the training batches, of images in memory or of streamed ones. Raises BadInput."""
    data, settings = experiment.data, experiment.settings
    if isinstance(images, Images):
        return Batches(images, settings.batch_size, data.augmentation, device)
    channels, height, width = sample.x.shape[1:]
    return Streamed(
        images,
        settings.batch_size,
        (channels, height, width),
        data.augmentation,
        data.sides(settings.epochs),
        device,
        default_workers() if data.workers is None else data.workers,
        on_corrupt,
    )


def _origin(experiment: Experiment, prepared: Prepared, digest: str, device: torch.device | str) -> dict[str, Any]:
    """Return where a run comes from, its images' digest, and what a training step costs in standard steps."""
    sample = prepared.sample.first(COUNTED).to(device).as_batch()
    cost = training_cost(experiment.training_method, prepared.model, sample, experiment.threat.model)
    return {
        **provenance(device),
        "configuration_digest": hashlib.sha256(to_toml(experiment).encode()).hexdigest(),
        "data_name": prepared.images.name,
        "data_digest": digest,
        "training_cost": cost,
    }


def _refuse_other(experiment: Experiment, folder: Path, resume: bool) -> None:
    """Raise BadInput unless the folder is new or empty, or holds this experiment and is to be resumed."""
    if (folder / CONFIG).exists():
        if not same_run(parsed(read(folder / CONFIG)), experiment):
            raise BadInput(f"{folder} holds a run of another configuration; choose another folder")
        if not resume and (folder / RESUME).exists():
            raise BadInput(f"{folder} already holds this run; add --resume to go on, or choose another folder")
    elif folder.exists() and not (folder.is_dir() and all(name.endswith(".part") for name in os.listdir(folder))):
        raise BadInput(f"{folder} is not empty and not a run folder; choose another")


def refuse_other_data(folder: Path, digest: str) -> None:
    """Raise BadInput if the folder's run was trained on images of another digest."""
    path = folder / PROVENANCE
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("data_digest", digest) != digest:
        raise BadInput(
            f"{folder} holds a run on other data ({earlier.get('data_name')}); name that data, or choose another folder"
        )


def same_run(one: Experiment, other: Experiment) -> bool:
    """Say whether two experiments differ at most in what changes no result: where the data lies, and the workers."""
    first, second = (replace(each, data=replace(each.data, workers=None, source="")) for each in (one, other))
    return first == second


def _validated(model: nn.Module, held_out: Images | None, threat: ThreatModel, seed: int) -> dict[str, float]:
    """Return clean and PGD-10 accuracy on the held-out training images; nothing where none are held out."""
    if held_out is None:
        return {}
    batch = held_out.to(next(model.parameters()).device).as_batch()
    logits = logits_of(model, batch.x)
    found = run(PGD(10, 1), model, batch._replace(logits=logits), threat, generator=seeded(seed))
    clean, robust = (logits.argmax(1) == batch.labels), found.score < 0
    return {
        "validation_accuracy": float(clean.float().mean()),
        "validation_robust_accuracy": float(robust.float().mean()),
    }


def metadata(experiment: Experiment, images: Images) -> dict[str, Any]:
    """Return what a weights file must say so that its model can be built again."""
    return {
        "model": asdict(experiment.model),
        "classes": list(images.classes),
        "channels": images.x.shape[1],
        "data": images.name,
        "size": experiment.data.final_size,
        "method": asdict(experiment.method),
        "threat": asdict(experiment.threat),
    }


def _save(state: State, folder: Path, about: dict[str, Any]) -> None:
    """Write metrics and weights, then the resume file, whose epoch is what counts."""
    write_text("".join(json.dumps(entry) + "\n" for entry in state.history), folder / METRICS)
    checkpoints.save_weights(folder / WEIGHTS, state.deployed, {**about, "epoch": state.epoch})
    checkpoints.save_resume(folder / RESUME, to_go_on(state))
