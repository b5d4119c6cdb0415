"""What models are called, and how several of one name are told apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from planish.core.errors import BadInput
from planish.models import is_borrowed
from planish.models.onnx import is_onnx
from planish.records.audit import Audit
from planish.report import Entry
from planish.runs.run import BEST

SAYING_NOTHING = {"build", "create", "get", "load", "make", "model", "net", "network"}
"""Words of a function's name that do not tell its model from another."""


def name_of(spec: str) -> str:
    """Return what a model is called: as its folder, its file or its function, unless the function's name says nothing.

    "runs/robust" is robust, "nets.py:wide" wide, "nets.py:build_model" nets, "hf://user/robust" robust;
    `model-best.safetensors` of a run is robust-best.
    """
    place, colon, own = spec.rpartition(":")
    if spec.startswith("hf://"):
        return own.rpartition("/")[2].partition("@")[0]
    if Path(spec).exists() or not colon:
        path = Path(spec).resolve()
        return f"{path.parent.name}-best" if path.name == BEST else path.stem if is_onnx(spec) else path.name
    if is_borrowed(spec) or not SAYING_NOTHING.issuperset(own.lower().split("_")):
        return own
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def refuse_twice(folders: Sequence[Path]) -> None:
    """Raise BadInput for a folder that is named twice: nothing tells it from itself."""
    known = set[Path]()
    for folder in folders:
        if folder.resolve() in known:
            raise BadInput(f"{folder} is named twice: name each folder once")
        known.add(folder.resolve())


def entry_names(found: Sequence[Entry], folders: Sequence[Path]) -> list[str]:
    """Return a name for each entry, which tells those of one name apart: by what judged one model, else by folders."""

    def apart(name: str, places: Sequence[int]) -> list[str]:
        return _judged_by([found[place] for place in places]) or _lying_in(name, [folders[place] for place in places])

    return _told_apart([entry.name for entry in found], apart)


def audited_apart(found: Sequence[Audit], folders: Sequence[Path]) -> list[Audit]:
    """Return the audits with names that tell models of one name apart by their folders."""
    names = [audit.name for audit in found]
    own = _told_apart(names, lambda name, places: _lying_in(name, [folders[place] for place in places]))
    return [
        replace(audit, meta={**audit.meta, "model": {**audit.meta.get("model", {}), "name": name}})
        for audit, name in zip(found, own, strict=True)
    ]


def _told_apart(names: Sequence[str], apart: Callable[[str, Sequence[int]], list[str]]) -> list[str]:
    """Return the names, those that several places share as `apart` says."""
    told = list(names)
    for name in set(names):
        places = [place for place, own in enumerate(names) if own == name]
        if len(places) > 1:
            for place, text in zip(places, apart(name, places), strict=True):
                told[place] = text
    return told


def _judged_by(found: Sequence[Entry]) -> list[str]:
    """Return names of one model that was judged by different attacks; none if it is not the same model."""
    digests = {entry.evaluation.meta.get("model", {}).get("digest") for entry in found}
    names = [f"{entry.name}, {' + '.join(entry.evaluation.asked)}" for entry in found]
    return names if len(digests) == 1 and len(set(names)) == len(names) else []


def _lying_in(name: str, folders: Sequence[Path]) -> list[str]:
    """Return names of models by as much of the ends of their folders' paths as tells these apart."""
    parts = [folder.resolve().parts for folder in folders]
    ends = [["/".join(own[-count:]) for own in parts] for count in range(1, max(map(len, parts)) + 1)]
    distinct = next((own for own in ends if len(set(own)) == len(own)), ends[0])
    return [end if end.rpartition("/")[2].startswith(name) else f"{name}, {end}" for end in distinct]
