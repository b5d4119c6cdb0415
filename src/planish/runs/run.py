"""A run folder: its files, written whole or not at all and read without unpickling, and the trained model in it."""

import io
import json
import pickle
import re
import shlex
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from planish.core.arguments import check_settled, path_of
from planish.core.errors import BadInput
from planish.models import Normalized, build, is_borrowed
from planish.registry import called_now
from planish.runs.config import written
from planish.storage.files import write_bytes
from planish.storage.reading import (
    DIGEST,
    Damaged,
    content_of,
    last_good,
    previous,
    read_json,
    read_lines,
    refuse_large,
    sealed,
    tensors_digest,
    unsealed,
)

if TYPE_CHECKING:
    from planish.runs.hub import Judged

WEIGHTS, BEST, RESUME, METRICS = "model.safetensors", "model-best.safetensors", "resume.pt", "metrics.jsonl"
CONFIG, PROVENANCE = "config.toml", "provenance.json"
SCHEMA_VERSION = 1
ANY = torch.Size([0])
"""The shape that a lazy module's weights have before its first forward."""


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the model's parameters and buffers as safetensors, with the metadata as one JSON string, and a digest.

    The weights that stood there stay as `previous(path)`.
    """
    check_storable(model)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()  # tied weights lie in one place; the file holds each name's own copy
    for name, value in model.state_dict().items():
        own = value.detach().cpu().contiguous()
        tensors[name] = own.clone() if own.untyped_storage().data_ptr() in places else own
        places.add(own.untyped_storage().data_ptr())
    about = {"schema_version": SCHEMA_VERSION, **metadata}
    text = json.dumps({**about, DIGEST: tensors_digest(tensors, about)})
    write_bytes(save(tensors, {"planish": text}), path, previous(path))


def check_storable(model: nn.Module) -> None:
    """Raise BadInput if a weights file cannot hold all that the model keeps."""
    check_settled(model)
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"the model keeps '{name}', a {type(value).__name__}, and files of weights hold tensors alone: keep it "
                "in a buffer, or train with planish.fit or planish.train without out="
            )


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a weights file. Raises BadInput for anything but a whole planish file."""
    try:
        refuse_large(path, path.stat().st_size)
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("planish")
    except FileNotFoundError:
        raise BadInput(f"no weights at {path}; give a run folder that holds {WEIGHTS}") from None
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is not a whole safetensors file ({error}); pickles are never loaded") from error
    try:
        metadata: dict[str, Any] = json.loads(text or "")
        newer = metadata["schema_version"] > SCHEMA_VERSION
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"{path} was not written by planish: it does not say which architecture it holds") from None
    if newer:
        raise BadInput(f"{path} was written by a newer planish (schema {metadata['schema_version']}); upgrade planish")
    return metadata


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a weights file, its digest tested. Raises BadInput, Damaged."""
    metadata, tensors = read_metadata(path), load_file(path)
    if metadata.pop(DIGEST, digest := tensors_digest(tensors, metadata)) != digest:
        raise Damaged(f"{path} is damaged: its weights are not those that were written; train again, or copy it again")
    if "name" in (method := metadata.get("method") or {}):
        metadata["method"] = {**method, "name": called_now("methods", method["name"])}
    return tensors, metadata


def load_weights(path: Path, model: nn.Module) -> None:
    """Load parameters and buffers into the model. Raises BadInput if they belong to another architecture."""
    put_weights(read_weights(path)[0], path, model)


def put_weights(tensors: dict[str, Tensor], path: Path, model: nn.Module) -> None:
    """Load a file's tensors into the model. Raises BadInput if they belong to another architecture."""
    own, found = _shapes(model, tensors)
    if own != found:
        raise BadInput(f"{path} holds {_misfit(own, found)}")
    model.load_state_dict(tensors)


def load_start(path: Path, model: nn.Module) -> None:
    """Load weights to start training from: of a run folder, a .safetensors file, or a checkpoint of torch.save.

    A checkpoint is read with weights_only, its state_dict found wherever it lies in it, and what wrappers put before
    names (`module.`, `_orig_mod.`) left out. The weights of a network without planish's normalization fit as well.
    Raises BadInput.
    """
    content = read_weights(path / WEIGHTS)[0] if path.is_dir() else _read(path)
    parts = [model] if not isinstance(model, Normalized) else [model, model.network]
    misfits: dict[int, str] = {}  # by names in common
    for found in states_in(content):
        for part in parts:
            own, there = _shapes(part, found)
            if own == there:
                part.load_state_dict(dict(found))
                return
            misfits.setdefault(len(own.keys() & there.keys()), _misfit(own, there))
    nearest = misfits[max(misfits)] if misfits else "no tensors by name"
    raise BadInput(f"{path} holds {nearest}; give the weights of this very architecture")


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


def _shapes(model: nn.Module, found: Mapping[str, Tensor]) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Return the shapes of a model's tensors and of a file's, by name; a lazy module takes the file's for its own."""
    there = {name: value.shape for name, value in found.items()}
    state = model.state_dict().items()
    return {name: there.get(name, ANY) if is_lazy(value) else value.shape for name, value in state}, there


def _misfit(own: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str:
    """Word the first difference of two tables of shapes."""
    wrong = next(name for name in sorted({*own, *found}) if own.get(name) != found.get(name))
    there, here = (_shape(shapes.get(wrong)) for shapes in (found, own))
    return f"another architecture: '{wrong}' is {there} there and {here} in the model"


def copy_run(run: Path, folder: Path) -> None:
    """Copy a finished run's files, its weights last, so that a copy that is cut short is no finished run."""
    for name in (CONFIG, METRICS, PROVENANCE, WEIGHTS):
        write_bytes((run / name).read_bytes(), folder / name)


def _code(spec: str) -> tuple[str, str]:
    """Return the file or module and the NAME of "folder/file.py:NAME" or "package.module:NAME", wherever it lies."""
    place, _, name = spec.rpartition(":")
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2], name


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "of any shape" if shape is ANY else "x".join(map(str, shape)) or "a scalar"


def save_resume(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a run needs to go on: tensors, numbers, strings and plain containers; the save before stays."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_bytes(sealed(content.getvalue()), path, previous(path))


def load_resume(path: Path) -> dict[str, Any]:
    """Read it back, with weights_only: code in the file is never run. Raises BadInput, Damaged if it is not whole."""
    try:
        content = io.BytesIO(unsealed(content_of(path)))
        with zipfile.ZipFile(content) as archive:
            refuse_large(path, sum(member.file_size for member in archive.infolist()))
            if archive.testzip() is not None:
                raise ValueError("a part of it is damaged")
        content.seek(0)
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as error:  # zipfile and torch raise anything on bytes that are not theirs
        raise Damaged(f"{path} is truncated or not a planish checkpoint; remove it to start over") from error
    return state


def architecture(name: str, options: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """Return a model of that name; a registered architecture untrained, with a still neutral normalization."""
    network = build(name, classes=classes, channels=channels, **options)
    return network if ":" in name else Normalized(network, (0.0,) * channels, (1.0,) * channels)


@dataclass(frozen=True)
class Run:
    """A trained model and its training.

    model: in evaluation mode. config: the configuration, as the tables of its TOML. history: an entry for each epoch,
    with "epoch", "loss", "train_accuracy" and more. about: what the model is for: classes, channels, data; of a
    folder method and threat too. folder: where it lies, None = in memory alone. notes: what was wrong with its files,
    and what was done.
    """

    model: nn.Module
    config: dict[str, Any]
    history: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def push_to_hub(self, repo: str, judged: "Sequence[Judged]" = (), *, private: bool = False) -> str:
        """Put weights, configuration, history and a card into a repository of the Hugging Face Hub; return its address.

        repo: "user/name"; it is made if it is not there. judged: evaluations and audits of this very model for the
        card, as records or folders; else those that lie in the run's own folder. Nothing is sent that is no
        safetensors file, configuration, history or card. Raises BadInput.
        """
        from planish.runs.hub import push

        return push(self, repo, judged, private)


def load_run(folder: str | Path, built_by: str | None = None, *, best: bool = False) -> Run:
    """Return the run of a folder: the trained model, in evaluation mode, its configuration and history.

    folder: or "hf://user/repo", perhaps with "@revision": of a repository of the Hugging Face Hub its safetensors,
    configuration and history are read, and no other file.
    built_by: the user's own function that built the model, if one did. A weights file only names it; it is imported
    and called if the caller names it too, so that a folder from elsewhere never runs code of its choosing.
    best: the weights of the epoch that was most robust on the run's own held-out images, in place of the last ones; a
    folder's `model-best.safetensors` asks for the same.
    Weights are laid out channels last, which convolutions run faster in, and pass on to what they compute.
    Raises BadInput.
    """
    if isinstance(folder, str) and folder.startswith("hf://"):
        from planish.runs.hub import fetched

        folder = fetched(folder, best)
    folder = path_of(folder)
    best, folder = (True, folder.parent) if folder.name == BEST else (best, folder)
    weights = folder / (BEST if best else WEIGHTS)
    if best and folder.is_dir() and not weights.exists():
        raise BadInput(f"{folder} has no best epoch: train with images held out, for instance data.validation=1000")
    (tensors, about), note = last_good(weights, read_weights)
    try:
        name, options = about["model"]["name"], about["model"]["options"]
        classes, channels = len(about["classes"]), int(about["channels"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{weights} does not say which architecture it holds") from None
    if is_borrowed(name):
        options = {**options, "pretrained": False}  # the weights are in the folder
    elif ":" in name and (built_by is None or _code(name) != _code(built_by)):
        trusted = f"if you trust that code, add --built-by {shlex.quote(name)}"
        raise BadInput(f"the model in {folder} was built by '{name}'; {trusted}")
    own = built_by if built_by and ":" in name and not is_borrowed(name) else name  # the code that the caller trusts
    model = architecture(own, options, classes, channels)
    put_weights(tensors, weights, model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = written(folder / CONFIG) if (folder / CONFIG).exists() else {}
    history = read_history(folder / METRICS, {} if note else about)
    return Run(model.eval(), config, history, about, folder, (note,) if note else ())


def read_history(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entry of each epoch; none if there is no file. about: of the weights. Raises Damaged."""
    if not path.exists():
        return []
    history = read_lines(path, "remove it to go on without it")
    if [entry.get("epoch") for entry in history] != [*range(1, len(history) + 1)]:
        raise Damaged(f"{path} is damaged: its epochs do not follow each other; remove it to go on without it")
    if len(history) < about.get("epoch", 0):
        raise Damaged(f"{path} is cut short: {WEIGHTS} is of epoch {about['epoch']}; remove it to go on without it")
    return history


def training_of(folder: Path) -> dict[str, Any] | None:
    """Return a run's method, cost and history: see `planish.report.tables.Training`.

    None where the folder holds weights alone. Raises BadInput.
    """
    try:
        origin = read_json(folder / PROVENANCE, "remove it to judge the model without its cost")
        history = read_history(folder / METRICS, {})
    except FileNotFoundError:
        return None
    seconds = sum(entry["seconds"] for entry in history)
    epochs = history[-1].get("epochs_done", len(history)) if history else 0
    tree = written(folder / CONFIG) if (folder / CONFIG).exists() else {}
    method = tree.get("method", {}).get("name", "")
    cost = {"passes": origin.get("training_cost"), "epochs": epochs, "seconds": seconds}
    return {"method": method, **cost, "history": history}
