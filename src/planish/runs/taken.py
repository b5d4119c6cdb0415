"""Whether two trainings are the same: of a folder and what is asked for, of the processes that train together."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import planish
from planish.core.errors import BadInput, Unlike
from planish.runs.config import Experiment, difference, parsed, to_toml, written
from planish.runs.places import has_worked, is_free
from planish.runs.run import CONFIG, PROVENANCE, RESUME
from planish.storage.reading import read_json, toml_of


def known(folder: Path) -> dict[str, Any]:
    """Return where the folder's run comes from, as far as it has come."""
    path = folder / PROVENANCE
    return read_json(path, "remove it, and the run goes on without it") if path.exists() else {}


def refuse_other(experiment: Experiment, folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise BadInput unless the folder is new or empty, or holds this experiment and is to be resumed, or any run that
    is to be overwritten."""
    if has_worked(folder, "train"):
        if overwrite:
            return
        earlier = parsed(written(folder / CONFIG))
        if resume and experiment.settings.epochs > earlier.settings.epochs:
            earlier = replace(earlier, settings=replace(earlier.settings, epochs=experiment.settings.epochs))
        if not same_run(earlier, experiment):
            told = difference(earlier, _results_alike(earlier, experiment))
            what = f"{folder} holds a run of another configuration: {told}"
            raise Unlike(f"{what}; --overwrite replaces it, another --out leaves it")
        if not resume and (folder / RESUME).exists():
            go_on = "--resume goes on with it, --overwrite replaces it, another --out leaves it"
            raise BadInput(f"{folder} already holds this run: {go_on}")
    elif not is_free(folder):
        raise BadInput(f"{folder} is not empty and not a run folder; choose another")


def refuse_other_data(folder: Path, digest: str) -> None:
    """Raise Unlike if the folder's run was trained on images of another digest."""
    refuse_data(folder, known(folder), digest)


def refuse_data(folder: Path, earlier: Mapping[str, Any], digest: str) -> None:
    """Raise Unlike if a run of that origin was trained on images of another digest."""
    if earlier.get("data_digest", digest) != digest:
        raise Unlike(
            f"{folder} holds a run on other data ({earlier.get('data_name')}); name that data, or choose another folder"
        )


def same_run(one: Experiment, other: Experiment) -> bool:
    """Say whether two experiments differ at most in what changes no result: where the data lies, workers, saving."""
    return one == _results_alike(one, other)


def _results_alike(one: Experiment, other: Experiment) -> Experiment:
    """Return the other with what changes no result as in the first."""
    data = replace(other.data, workers=one.data.workers, source=one.data.source)
    return replace(other, data=data, settings=replace(other.settings, save_minutes=one.settings.save_minutes))


def identity(experiment: Experiment, digest: str, saved: Mapping[str, Any] | None) -> dict[str, object]:
    """Return what must be the same in all processes of a run: versions, data, where it goes on, configuration."""
    facts: dict[str, object] = {"planish": planish.__version__, "PyTorch": torch.__version__, "the data": digest[:12]}
    facts["a run folder at step"] = 0 if saved is None else saved["step"]
    for section, table in toml_of(to_toml(_results_alike(Experiment(), experiment))).items():
        named = table if isinstance(table, dict) else {"": table}
        facts |= {f"{section}.{key}".rstrip("."): value for key, value in named.items()}
    return facts
