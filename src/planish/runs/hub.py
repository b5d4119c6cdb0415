"""Runs on the Hugging Face Hub: safetensors, configuration, history and a card; nothing else goes or comes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from planish.core.arguments import path_of
from planish.core.errors import BadInput, installed
from planish.core.threat_texts import parse_threat
from planish.core.words import number_of, radius_text
from planish.models import is_borrowed
from planish.records import audit as audits
from planish.records import evaluation as evaluations
from planish.records.audit import Audit
from planish.records.evaluation import Evaluation
from planish.records.origin import model_digest
from planish.report import model_card
from planish.runs.judge import EVALUATION
from planish.runs.run import BEST, CONFIG, METRICS, WEIGHTS, Run, read_metadata

Found = TypeVar("Found")
PREFIX = "hf://"
ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CARD = "README.md"
"""What the Hub shows as a repository's page."""
Judged = str | Path | Evaluation | Audit


def address_of(text: str) -> tuple[str, str | None]:
    """Return repository and revision of "hf://user/repo" or "hf://user/repo@revision". Raises BadInput."""
    if (found := ADDRESS.fullmatch(text)) is None:
        raise BadInput(f"'{text}' is no address on the Hub: write hf://user/repo, or hf://user/repo@revision")
    return found["repo"], found["revision"]


def fetched(address: str, best: bool = False) -> Path:
    """Return the folder that the Hub's library keeps a repository's run in: safetensors and configuration alone.

    best: the weights of the best epoch too. Raises BadInput for an address that is none, and where nothing is there.
    """
    repo, revision = address_of(address)
    wanted = [WEIGHTS, CONFIG, METRICS, *([BEST] if best else [])]
    with _told(f"cannot load {address}"):
        folder = Path(_hub().snapshot_download(repo, revision=revision, allow_patterns=wanted))
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{address} holds no {WEIGHTS}: planish's own push_to_hub puts one there")
    return folder


def push(run: Run, repo: str, judged: Sequence[Judged] = (), private: bool = False) -> str:
    """Put a run into a repository, in one commit, and return its address; see `Run.push_to_hub`. Raises BadInput."""
    address_of(f"{PREFIX}{repo}")
    if run.folder is None:
        raise BadInput("this run is in memory alone: train with out=FOLDER, or open its folder by planish.load_run")
    records = [one for given in (judged or [run.folder]) for one in _records(given, bool(judged))]
    _check_same(records, run)
    hub, folder = _hub(), run.folder
    files: dict[str, bytes] = {CARD: card_of(run, repo, records).encode()}
    files |= {
        name: (folder / name).read_bytes() for name in (CONFIG, METRICS, WEIGHTS, BEST) if (folder / name).is_file()
    }
    with _told(f"cannot push to {PREFIX}{repo}"):
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        added = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
        api.create_commit(repo, added, commit_message="planish: weights, configuration, history, card")
    return f"{PREFIX}{repo}"


def card_of(run: Run, repo: str, records: Sequence[Evaluation | Audit]) -> str:
    """Return the card of a run: what it is, what is known of its robustness, how to load it."""
    about, title = run.about, repo.rpartition("/")[2]
    names = {key: about.get(key, {}).get("name", "unknown") for key in ("model", "method")}
    threat = about.get("threat", {})
    ball = f" against {threat['norm']} radius {_radius(threat)}" if threat else ""
    size = number_of(len(about["classes"]), "class", "classes")
    told = f"A {names['model']} for {size}, trained by {names['method']}{ball} on {about.get('data', 'unknown data')}."
    notes = ["Images are in [0, 1]; the normalization is inside the model."]
    given = f'"{PREFIX}{repo}"'
    if ":" in names["model"] and not is_borrowed(names["model"]):
        notes.append(f"Its network is built by {names['model']}, code that is not here.")
        given += f', built_by="{names["model"]}"'
    if _is_best(run):
        notes.append(f"These are its weights of epoch {about['epoch']}, the most robust on held-out images.")
        given += ", best=True"
    lines = ["```python", "import planish", "", f"model = planish.load_run({given}).model", "```"]
    return model_card(title, [told, *notes], records, lines)


def _is_best(run: Run) -> bool:
    """Say whether a run's weights are those of its best epoch, and not the last ones, which are loaded otherwise."""
    files = [run.folder / name for name in (BEST, WEIGHTS)] if run.folder is not None else []
    epochs = [read_metadata(file).get("epoch") for file in files if file.is_file()]
    return len(epochs) == 2 and run.about.get("epoch") == epochs[0] != epochs[1]


def _radius(threat: Mapping[str, Any]) -> str:
    return radius_text(parse_threat(threat["norm"], threat["radius"]).radius)


def _records(given: Judged, must: bool) -> Iterator[Evaluation | Audit]:
    """Yield the records that a folder holds, or the record itself. must: raise BadInput where a folder holds none."""
    if isinstance(given, Evaluation | Audit):
        yield given
        return
    folder = path_of(given)
    reads: dict[str, Callable[[Path], Evaluation | Audit]] = {
        EVALUATION: lambda path: evaluations.load(path),
        audits.RECORD: lambda path: audits.load(path.parent),
    }
    there = [name for name in reads if (folder / name).is_file()]
    if must and not there:
        raise BadInput(f"{folder} holds neither {EVALUATION} nor {audits.RECORD}: name what judged the model")
    yield from (reads[name](folder / name) for name in there)


def _check_same(records: Sequence[Evaluation | Audit], run: Run) -> None:
    """Raise BadInput for a record that is of another model: its number would stand on the wrong card."""
    own = model_digest(run.model)
    for record in records:
        about = record.meta.get("model", {})
        if about.get("digest") != own:
            name = about.get("name", "another model")
            raise BadInput(f"a record of {name} is of other weights than {run.folder}: judge these weights first")


def _hub() -> Any:
    return installed("huggingface_hub", "the Hugging Face Hub")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Let anything that the Hub's library raises be one BadInput."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # its own errors, those of its HTTP library, and of the system
        first = next(iter(str(error).strip().splitlines()), "")
        raise BadInput(f"{what}: {type(error).__name__}: {first}") from error
