"""An experiment carried out into a run folder: put together, trained, saved and resumed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from planish.attacks import run
from planish.attacks.gradient import PGD
from planish.core.arguments import check_classes, check_logits, is_settled, logits_of
from planish.core.errors import BadInput
from planish.core.randomness import initialised, seeded
from planish.core.share import WHOLE, Share
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
from planish.runs.keeper import Keeper, Saver
from planish.runs.run import CONFIG, RESUME, architecture
from planish.runs.taken import identity, known, refuse_data, refuse_other
from planish.storage.files import refuse_unwritable
from planish.storage.reading import last_good
from planish.training.collapse import probe
from planish.training.cost import training_cost
from planish.training.epochs import Epochs
from planish.training.loop import EpochRecord, Examples, check_derivatives, fit, start
from planish.training.processes import ALONE, Group, on_this_machine
from planish.training.state import State, go_on
from planish.training.step import PlainLogits, check_trainable

COUNTED = 4
"""Images on which the cost of a training step is counted."""
PROBED = 512
"""Held-out images that a guard draws its probes from, and that the linearity error is measured on."""
SHOWN = 8
"""Held-out images that trackers are shown."""
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
    some = sample.first(2).to(device).as_batch()
    classes = check_logits(model, some).shape[1]
    check_trainable(model, some.x, experiment.training_method, experiment.settings.precision)
    known = model.classes if isinstance(model, Normalized) else ()
    if known and None not in named_places(sample.classes, known):  # a published head keeps its order of the classes
        images, sample = matched(images, known)[0], matched(sample, known)[0]
        held_out = None if held_out is None else matched(held_out, known)[0]
    check_classes(images.labels, classes)
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
    """Build the model, its weights drawn from the seed, the global random state untouched. Raises BadInput."""
    if len(images.classes) < 2:
        told = f"{images.name} has one class, '{images.classes[0]}', and a model tells two or more apart"
        raise BadInput(f"{told}: add others, or name the folder whose own folders are the classes")
    with initialised(seed):
        network = architecture(model.name, model.options, len(images.classes), images.x.shape[1])
        if not is_settled(network):  # lazy modules draw their weights at their first forward
            check_logits(network, images.first(2).as_batch())
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
    group: Group = ALONE,
) -> Iterator[EpochRecord]:
    """Train into a run folder, one record per finished epoch, everything saved by then.

    A killed run goes on with resume=True from where it was last saved (`settings.save_minutes`) and ends, on CPU,
    bit-identical; where the data lies may have changed, the data may not. With more epochs than the folder's run had,
    that run goes on: at the learning rates that a run of so many epochs has from there on.
    With images held out, the weights of the epoch that was most robust on them are kept beside the last ones.
    overwrite: what planish wrote into the folder is replaced, and what judged its model goes. group: the processes that
    train together, all of which call this alike; the first one writes. A run goes on with any number of them.
    Raises BadInput if the folder holds a run without either, Unlike if its configuration or data are others, Agreed for
    either in one of several processes, and where these differ.
    """
    begun = group.together(lambda: _begun(experiment, folder, device, resume, overwrite, group))
    group.agree(identity(experiment, begun.digest, begun.saved))
    prepared, settings, threat = begun.prepared, experiment.settings, experiment.threat.model
    origin = _origin(experiment, prepared, begun.digest, group, device)
    state = group.together(lambda: start(prepared.model, settings, group))
    if begun.saved is not None:
        go_on(state, begun.saved)
    keeper = Keeper(experiment, folder, state, origin, begun.corrupt)
    if group.first:
        keeper.begin(overwrite)
    probed = None if prepared.held_out is None else prepared.held_out.first(PROBED).to(device).as_batch()
    also: dict[str, Any] = {"seed": experiment.seed, "guard": experiment.guard, "held_out": probed, "group": group}
    if group.first:
        also["after_step"] = Saver(state, settings.save_minutes, keeper.keep)
    for record in fit(state, experiment.training_method, threat, begun.batches, settings, **also):
        checked = _checked(record, state, begun, experiment, group)
        if group.first:
            keeper.keep_epoch(metadata(experiment, prepared.sample))
        yield checked


class _Begun(NamedTuple):
    """A run that can start. saved: the state to go on from. corrupt: images that were found unreadable so far."""

    prepared: Prepared
    batches: Epochs
    digest: str
    saved: Mapping[str, Any] | None
    corrupt: set[str]


def _begun(
    experiment: Experiment, folder: Path, device: torch.device | str, resume: bool, overwrite: bool, group: Group
) -> _Begun:
    """Return what a run starts with; nothing is written. Raises BadInput."""
    check_experiment(experiment)
    refuse_other(experiment, folder, resume, overwrite)
    refuse_unwritable(folder / CONFIG)
    earlier = {} if overwrite else known(folder)
    corrupt = {*earlier.get("corrupt_images", [])}
    on_corrupt = corrupt.add if experiment.data.skip_corrupt else refuse
    goes_on = (folder / RESUME).exists() and not overwrite  # then the weights that it started from are not needed
    own = replace(experiment, model=replace(experiment.model, weights=None)) if goes_on else experiment
    prepared = prepare(own, device, on_corrupt)
    runs.check_storable(prepared.model)
    check_derivatives(prepared.model, experiment.training_method, experiment.settings)
    digest = prepared.images.digest()
    refuse_data(folder, earlier, digest)
    batches = batches_of(experiment, prepared, device, on_corrupt, group.share)
    saved = last_good(folder / RESUME, runs.load_resume)[0] if goes_on else None
    return _Begun(prepared, batches, digest, saved, corrupt)


def _checked(record: EpochRecord, state: State, begun: _Begun, experiment: Experiment, group: Group) -> EpochRecord:
    """Return an epoch's record with what held-out images say, and unreadable ones, entered into the history."""
    seen = _validated(state.deployed, begun.prepared.held_out, experiment.threat.model, experiment.seed, group)
    found, examples = seen or ({}, None)
    if experiment.data.skip_corrupt:
        begun.corrupt.update(*(json.loads(text) for text in group.texts(json.dumps([*begun.corrupt]))))
        found["corrupt_images"] = len(begun.corrupt)
    state.history[-1] |= {**found, "learning_rate": record.learning_rate, "seconds": record.seconds}
    return record._replace(metrics={**record.metrics, **found}, examples=examples)


def check_experiment(experiment: Experiment) -> None:
    """Raise BadInput for data that do not lie there, and for an unknown model: before anything is loaded."""
    check_there(experiment.data.source, "train")
    if not (":" in experiment.model.name or is_borrowed(experiment.model.name)):
        resolve("models", experiment.model.name)


def batches_of(
    experiment: Experiment, prepared: Prepared, device: torch.device | str, on_corrupt: OnCorrupt, share: Share = WHOLE
) -> Epochs:
    """Return the training batches, of images in memory or of streamed ones. Raises BadInput."""
    data, size, images = experiment.data, experiment.settings.batch_size, prepared.images
    if isinstance(images, Images):
        return Batches(images, size, data.augmentation, device, share=share)
    channels, height, width = prepared.sample.x.shape[1:]
    shape, sides = (channels, height, width), data.sides(experiment.settings.epochs)
    workers = max(1, default_workers() // on_this_machine()) if data.workers is None else data.workers
    return Streamed(images, size, shape, data.augmentation, sides, device, workers, on_corrupt, share)


def _origin(
    experiment: Experiment, prepared: Prepared, digest: str, group: Group, device: torch.device | str
) -> dict[str, Any]:
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
        **({"processes": group.size} if group.size > 1 else {}),
    }


def _validated(
    model: nn.Module, held_out: Images | None, threat: ThreatModel, seed: int, group: Group
) -> tuple[dict[str, float], Examples] | None:
    """Return what held-out training images say, and the first of them attacked; None where none are held out.

    Clean and PGD-10 accuracy, and on `PROBED` of them how linear the loss is along one full gradient step.
    """
    if held_out is None:
        return None
    batch = held_out.to(next(model.parameters()).device).as_batch()
    batch = batch.select(group.share.rows(len(batch.x))) if len(batch.x) >= group.size else batch
    logits = logits_of(model, batch.x)
    plain = PlainLogits(model)
    found = run(PGD(10, 1), plain, batch._replace(logits=logits), threat, generator=seeded(seed))
    right = {"accuracy": logits.argmax(1) == batch.labels, "robust_accuracy": found.score < 0}
    part = batch.select(slice(0, PROBED))
    seen = probe(plain, part, threat)
    means = {name: group.mean(share.float().mean(), len(batch.x)) for name, share in right.items()}
    means |= {name: group.mean(getattr(seen, name), len(part.x)) for name in ("linearity_error", "gradient_cosine")}
    shown = slice(0, SHOWN)
    return {f"validation_{name}": float(mean) for name, mean in means.items()}, Examples(
        batch.x[shown].cpu(), found.x_adv[shown].cpu()
    )


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
