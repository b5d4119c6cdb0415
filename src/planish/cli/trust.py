"""Functions that built a run's model, remembered where the user named them: for the same weights and unchanged code."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from planish.core.errors import BadInput
from planish.storage.files import write_sealed_json
from planish.storage.reading import DIGEST, LOG, read_json


def remembered(model: str) -> str | None:
    """Return what `known` does, and say so."""
    if found := known(model):
        LOG.warning("planish: %s is built by %s, as was named before", model, found)
    return found


def known(model: str) -> str | None:
    """Return the function that was named for this very run before, in training it or by `--built-by`, if its file is
    the same still."""
    entry = _entries().get(_digest_of_run(model), {})
    path = Path(entry.get("file", ""))
    if not path.is_file() or _digest(path) != entry["digest"]:
        return None
    return str(entry["built_by"])


def remember(model: str, built_by: str) -> None:
    """Remember who built a run's model; nothing where the run or the code has no digest, or nothing can be written."""
    place, _, name = built_by.rpartition(":")
    path = Path(place) if place.endswith(".py") else Path(getattr(sys.modules.get(place), "__file__", None) or "")
    if not (run := _digest_of_run(model)) or not path.is_file():
        return
    spec = f"{path.resolve()}:{name}" if place.endswith(".py") else built_by
    entry = {"built_by": spec, "file": str(path.resolve()), "digest": _digest(path)}
    try:
        write_sealed_json({**_entries(), run: entry}, _kept())
    except BadInput:
        return


def _kept() -> Path:
    from platformdirs import user_data_path

    return user_data_path("planish") / "built-by.json"


def _entries() -> dict[str, Any]:
    """Return what is remembered by the digests of runs; nothing if that cannot be read."""
    try:
        return read_json(_kept(), "")
    except (OSError, BadInput):
        return {}


def _digest_of_run(model: str) -> str:
    """Return the digest that a run's weights say, which loading them tests; "" of anything that no own function built.

    A folder that lies about it only has a function run that the user has named, on this machine and for a run.
    """
    from planish.models import is_borrowed
    from planish.runs.run import BEST, WEIGHTS, read_metadata

    path = Path(model)
    weights = path if path.name == BEST else path / WEIGHTS
    try:
        about = read_metadata(weights) if weights.is_file() else {}
        name = str(about["model"]["name"])
    except (BadInput, KeyError, TypeError):
        return ""
    return str(about.get(DIGEST, "")) if ":" in name and not is_borrowed(name) else ""


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
