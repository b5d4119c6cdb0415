"""A trained model with how it was trained, and the one call that trains one."""

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish.core.arguments import batch_of, check_images, check_logits, path_of, seed_of, shown, threat_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.data.batches import Batches
from planish.data.images import Images, numbered_classes
from planish.methods import Method
from planish.models import is_borrowed
from planish.registry import components, make
from planish.runs import checkpoint as checkpoints
from planish.runs.checkpoint import CONFIG, METRICS, WEIGHTS
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions, read
from planish.runs.train import architecture, new_model, train_into
from planish.training.collapse import OFF, Guard
from planish.training.loop import fit, start
from planish.training.settings import Settings


@dataclass(frozen=True)
class Run:
    """A trained model and its training.

    model: in evaluation mode. config: the configuration, as the tables of its TOML. history: an entry for each epoch,
    with "epoch", "loss", "train_accuracy" and more. about: what the model is for: classes, channels, data, method,
    threat. folder: where it lies, None = in memory alone.
    """

    model: nn.Module
    config: dict[str, Any]
    history: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def load_run(folder: str | Path, built_by: str | None = None) -> Run:
    """Return the run of a folder: the trained model, in evaluation mode, its configuration and history.

    built_by: the user's own function that built the model, if one did. A weights file only names it; it is imported
    and called if the caller names it too, so that a folder from elsewhere never runs code of its choosing.
    Weights are laid out channels last, which convolutions run faster in, and pass on to what they compute.
    Raises BadInput.
    """
    folder = path_of(folder)
    about = checkpoints.read_metadata(folder / WEIGHTS)
    try:
        name, options = about["model"]["name"], about["model"]["options"]
        classes, channels = len(about["classes"]), int(about["channels"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{folder / WEIGHTS} does not say which architecture it holds") from None
    if is_borrowed(name):
        options = {**options, "pretrained": False}  # the weights are in the folder
    elif ":" in name and name != built_by:
        raise BadInput(f"the model in {folder} was built by '{name}'; if you trust that code, add --built-by {name}")
    model = architecture(name, options, classes, channels)
    checkpoints.load_weights(folder / WEIGHTS, model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = read(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return Run(model.eval(), config, _history(folder / METRICS), about, folder)


def _history(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(
    model: nn.Module | str,
    data: "str | Images | Batch | tuple[Any, Any]",
    *,
    method: Method | str = "planish",
    threat: ThreatModel | str,
    epochs: int | None = None,
    settings: Settings | None = None,
    guard: Guard = OFF,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
) -> Run:
    """Train a model against a threat, and return the run.

    model: a module from images in [0, 1] to logits, which is trained in place; or an architecture's name, such as
    "small-cnn" or "wide-resnet-34-10", or "file.py:function".
    data: a text such as "digits" or "cifar10:PATH"; or images and labels (x, labels), x (N, C, H, W) in [0, 1].
    method: such as planish.methods.SEAT(), or a name such as "seat", "llr-2" or "file.py:NAME".
    threat: such as planish.Linf("8/255"), or the text "Linf:8/255".
    epochs: in place of those of the settings, which are `Settings()` unless given, with batches no larger than the
    data.
    guard: against catastrophic overfitting. seed: of everything random. device: to compute on.
    out: a run folder to write as well; then model, data and method must have names, so that it can be opened again.
    Raises BadInput.
    """
    given, settings = settings is not None, settings or Settings()
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    own, threat, seed = _method(method), threat_of(threat), seed_of(seed)
    if out is not None:
        experiment = _experiment(model, data, method, threat, settings, guard, seed)
        for _ in train_into(experiment, path_of(out), device=device):
            pass
        return load_run(out, model if isinstance(model, str) else None)
    images = _images(data)
    settings = settings if given else replace(settings, batch_size=min(settings.batch_size, len(images)))
    config = _config(model, images, method, threat, settings, seed)
    network = _network(model, images, seed).to(device)
    check_logits(network, images.first(2).to(device).as_batch())
    state = start(network, settings)
    batches = Batches(images, settings.batch_size, DataOptions().augmentation, device)
    for record in fit(state, own, threat, batches, settings, seed=seed, guard=guard):
        state.history[-1] |= {"learning_rate": record.learning_rate, "seconds": record.seconds}
    about = {"classes": list(images.classes), "channels": images.x.shape[1], "data": images.name}
    return Run(state.deployed.eval(), config, state.history, about)


def _method(method: object) -> Method:
    if isinstance(method, str):
        made: Method = make("methods", method, {})
        return made
    if isinstance(method, type) or not (callable(method) and hasattr(method, "second_order")):
        hint = f"; call the class: {method.__name__}()" if isinstance(method, type) else ""
        raise BadInput(f'a method is a name such as "seat" or planish.methods.SEAT(), not {shown(method)}{hint}')
    return method  # type: ignore[return-value]


def _images(data: object) -> Images:
    """Return training images in memory. Raises BadInput."""
    if isinstance(data, str):
        from planish.data import load

        return load(data, "train")
    if isinstance(data, Images):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data, Batch):
        data = batch_of(*data)
    if not isinstance(data, Batch):
        raise BadInput(f'data is a text such as "digits", or images and labels (x, labels), not {shown(data)}')
    check_images(data, threat_of("Linf:0"))
    return Images(data.x.float(), data.labels, numbered_classes(data.labels), "images in memory", data.indices)


def _network(model: object, images: Images, seed: int) -> nn.Module:
    if isinstance(model, str):
        return new_model(Named(model), images, seed)
    if not isinstance(model, nn.Module):
        raise BadInput(f'the model is a torch.nn.Module or a name such as "small-cnn", not {shown(model)}')
    return model


def _named(method: Method | str) -> Named:
    """Return a method's name and options; one that is not registered has its class's name."""
    if isinstance(method, str):
        return Named(method)
    names = [name for name, kind in components("methods").items() if kind is type(method)]
    parts: tuple[Any, ...] = fields(method) if is_dataclass(method) else ()
    own = {part.name: getattr(method, part.name) for part in parts}
    return Named(names[0] if names else type(method).__name__, own)


def _experiment(
    model: object, data: object, method: Method | str, threat: ThreatModel, settings: Settings, guard: Guard, seed: int
) -> Experiment:
    """Return the experiment of what has names. Raises BadInput."""
    for what, value in (("model", model), ("data", data)):
        if not isinstance(value, str):
            raise BadInput(
                f"out= writes a run folder, which must name its {what} to be opened again: "
                f"give a text, not {shown(value)}"
            )
    named = _named(method)
    if ":" not in named.name:
        _ = make("methods", named.name, named.options)
    options = ThreatOptions(threat.name, threat.radius)
    return Experiment(DataOptions(str(data)), Named(str(model)), named, options, settings, guard, seed)


def _config(
    model: object, images: Images, method: Method | str, threat: ThreatModel, settings: Settings, seed: int
) -> dict[str, Any]:
    """Return the configuration as the tables of a run folder's TOML, as far as things have names."""
    named = _named(method)
    return {
        "seed": seed,
        "data": {"source": images.name},
        "model": {"name": model if isinstance(model, str) else type(model).__name__},
        "method": {"name": named.name, **named.options},
        "threat": {"norm": threat.name, "radius": threat.radius},
        "settings": asdict(settings),
    }
