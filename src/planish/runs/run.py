"""A run folder: its files, written whole or not at all and read without unpickling, and the trained model in it."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from planish.core.arguments import path_of
from planish.core.errors import BadInput
from planish.models import Normalized, build, is_borrowed
from planish.runs.config import read
from planish.storage.files import write_bytes

WEIGHTS, BEST, RESUME, METRICS = "model.safetensors", "model-best.safetensors", "resume.pt", "metrics.jsonl"
CONFIG, PROVENANCE = "config.toml", "provenance.json"
SCHEMA_VERSION = 1


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the model's parameters and buffers as safetensors, with the metadata as one JSON string."""
    check_storable(model)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()  # tied weights lie in one place; the file holds each name's own copy
    for name, value in model.state_dict().items():
        own = value.detach().cpu().contiguous()
        tensors[name] = own.clone() if own.untyped_storage().data_ptr() in places else own
        places.add(own.untyped_storage().data_ptr())
    text = json.dumps({"schema_version": SCHEMA_VERSION, **metadata})
    write_bytes(save(tensors, {"planish": text}), path)


def check_storable(model: nn.Module) -> None:
    """Raise BadInput if a weights file cannot hold all that the model keeps."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"the model keeps '{name}', a {type(value).__name__}, and files of weights hold tensors alone: keep it "
                "in a buffer, or train with planish.fit or planish.train without out="
            )


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a weights file. Raises BadInput for anything but a whole planish file."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("planish")
    except FileNotFoundError:
        raise BadInput(f"no weights at {path}; give a run folder that holds {WEIGHTS}") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a whole safetensors file ({error}); pickles are never loaded") from error
    try:
        metadata: dict[str, Any] = json.loads(text or "")
        newer = metadata["schema_version"] > SCHEMA_VERSION
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} was not written by planish: it does not say which architecture it holds") from None
    if newer:
        raise BadInput(f"{path} was written by a newer planish (schema {metadata['schema_version']}); upgrade planish")
    return metadata


def load_weights(path: Path, model: nn.Module) -> None:
    """Load parameters and buffers into the model. Raises BadInput if they belong to another architecture."""
    read_metadata(path)
    tensors = load_file(path)
    own = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if own != found:
        raise BadInput(f"{path} holds {_misfit(own, found)}")
    model.load_state_dict(tensors)


def load_start(path: Path, model: nn.Module) -> None:
    """Load weights to start training from: of a run folder, a .safetensors file, or a checkpoint of torch.save.

    A checkpoint is read with weights_only, its state_dict found wherever it lies in it, and what wrappers put before
    names (`module.`, `_orig_mod.`) left out. The weights of a network without planish's normalization fit as well.
    Raises BadInput.
    """
    path = path / WEIGHTS if path.is_dir() else path
    parts = [model] if not isinstance(model, Normalized) else [model, model.network]
    first = ""
    for found in states_in(_read(path)):
        for part in parts:
            own = {name: value.shape for name, value in part.state_dict().items()}
            if own == {name: value.shape for name, value in found.items()}:
                part.load_state_dict(dict(found))
                return
            first = first or _misfit(own, {name: value.shape for name, value in found.items()})
    raise BadInput(f"{path} holds {first or 'no tensors by name'}; give the weights of this very architecture")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"no weights at {path}: give a run folder, a .safetensors file or a checkpoint") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path} is not a whole file of weights, or holds more than tensors ({reason})") from error


def states_in(content: Any) -> Iterator[Mapping[str, Tensor]]:
    """Yield every table of tensors by name in a checkpoint, the outer ones first, as it is and without wrappers' names.

    Counters and other numbers beside the tables are passed over.
    """
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield tensors
        yield {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}
    for part in content.values():
        yield from states_in(part)


def _misfit(own: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str:
    """Word the first difference of two tables of shapes."""
    wrong = next(name for name in sorted({*own, *found}) if own.get(name) != found.get(name))
    there, here = (_shape(shapes.get(wrong)) for shapes in (found, own))
    return f"another architecture: '{wrong}' is {there} there and {here} in the model"


def copy_run(run: Path, folder: Path) -> None:
    """Copy a finished run's files, its weights last, so that a copy that is cut short is no finished run."""
    for name in (CONFIG, METRICS, PROVENANCE, WEIGHTS):
        write_bytes((run / name).read_bytes(), folder / name)


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a scalar"


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a run needs to go on: tensors, numbers, strings and plain containers."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_bytes(content.getvalue(), path)


def load_resume(path: Path) -> dict[str, Any]:
    """Read it back, with weights_only: code in the file is never run. Raises BadInput if it is not whole."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("torch.save writes zip files")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path} is truncated or not a planish checkpoint; remove it to start over") from error
    return state


def architecture(name: str, options: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """Return a model of that name; a registered architecture untrained, with a still neutral normalization."""
    network = build(name, classes=classes, channels=channels, **options)
    return network if ":" in name else Normalized(network, (0.0,) * channels, (1.0,) * channels)


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


def load_run(folder: str | Path, built_by: str | None = None, *, best: bool = False) -> Run:
    """Return the run of a folder: the trained model, in evaluation mode, its configuration and history.

    built_by: the user's own function that built the model, if one did. A weights file only names it; it is imported
    and called if the caller names it too, so that a folder from elsewhere never runs code of its choosing.
    best: the weights of the epoch that was most robust on the run's own held-out images, in place of the last ones; a
    folder's `model-best.safetensors` asks for the same.
    Weights are laid out channels last, which convolutions run faster in, and pass on to what they compute.
    Raises BadInput.
    """
    folder = path_of(folder)
    best, folder = (True, folder.parent) if folder.name == BEST else (best, folder)
    weights = folder / (BEST if best else WEIGHTS)
    if best and folder.is_dir() and not weights.exists():
        raise BadInput(f"{folder} has no best epoch: train with images held out, for instance data.validation=1000")
    about = read_metadata(weights)
    try:
        name, options = about["model"]["name"], about["model"]["options"]
        classes, channels = len(about["classes"]), int(about["channels"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{weights} does not say which architecture it holds") from None
    if is_borrowed(name):
        options = {**options, "pretrained": False}  # the weights are in the folder
    elif ":" in name and name != built_by:
        raise BadInput(f"the model in {folder} was built by '{name}'; if you trust that code, add --built-by {name}")
    model = architecture(name, options, classes, channels)
    load_weights(weights, model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = read(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return Run(model.eval(), config, _history(folder / METRICS), about, folder)


def _history(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
