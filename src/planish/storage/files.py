"""Files written whole or not at all, one process at a time in a folder, and where planish's own files lie."""

import csv
import io
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.core.errors import BadInput, Unwritten
from planish.storage.reading import LOG, sealed, with_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_bytes(content: bytes, path: str | Path, before: Path | None = None) -> None:
    """Write a file beside the path, flush it to disk and move it there in one step; folders are made.

    before: where what stood there stays; None = nowhere.
    Raises BadInput where the folder cannot be written or is full; what stood there before then stands still.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.write_bytes(content)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        if before is not None and path.exists():
            _keep(path, before)
        temporary.replace(path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> Unwritten:
    return Unwritten(f"cannot write {path}: {error.strerror or error}; choose another folder or free space")


def refuse_unwritable(path: Path) -> None:
    """Raise BadInput as `write_bytes` would where no file can be made at the path, and leave nothing behind."""
    try:
        place = next(part for part in path.parents if part.exists())
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".part", dir=place):
            pass
    except OSError as error:
        raise _unwritten(path, error) from error


def _keep(path: Path, before: Path) -> None:
    """Let a file's content be found under another name as well; where there are no links, it is copied."""
    before.unlink(missing_ok=True)
    try:
        os.link(path, before)
    except OSError:
        shutil.copyfile(path, before)


def write_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text atomically; parts of undecodable names are written as escapes. Raises BadInput."""
    write_bytes(text.encode(errors="backslashreplace"), path)


def write_json(document: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON document atomically. ValueError when it holds NaN or infinity."""
    write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", path)


def write_sealed_json(document: dict[str, Any], path: str | Path) -> None:
    """Write a JSON document with its digest, which `read_json` tests. ValueError when it holds NaN or infinity."""
    write_json(with_digest(document), path)


def write_lines(entries: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write one JSON document a line, each with its digest, which `read_lines` tests."""
    write_text("".join(json.dumps(with_digest(entry)) + "\n" for entry in entries), path)


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as comma-separated values, the header above them; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there and empty."""
    with suppress(OSError):
        path.rmdir()


def write_arrays(path: str | Path, **arrays: "NDArray[Any]") -> None:
    """Write one compressed .npz without pickle, as `write_bytes` does, with a digest."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(sealed(content.getvalue()), path)


def home() -> Path:
    """Return $PLANISH_HOME, else the user's cache folder for planish. It need not exist. BadInput without a home."""
    if chosen := os.environ.get("PLANISH_HOME"):
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_cache_dir

    found = Path(user_cache_dir("planish"))
    if not found.is_absolute():
        raise BadInput("you have no home folder; set PLANISH_HOME to a folder where planish may keep its own files")
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for what is needed only meanwhile."""
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        yield Path(folder)


LOCK = ".planish.lock"
"""Lies in a folder while a command works in it; a killed one leaves it, and it locks nothing then."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other planish commands out of the folder meanwhile, of other users and machines too.

    The lock is the system's, on a file in the folder that is gone afterwards, with the folders that were made for it.
    Raises BadInput where another command is at work. Where the file system has no locks, that is told, and nothing is
    kept out; nor where no file can be made: nothing can be written there anyway.
    """
    place = folder.resolve()
    made = [part for part in (place, *place.parents) if not part.exists()]
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            held.callback(_tidy, made)
            place.mkdir(parents=True, exist_ok=True)
            handle = _locked(place / LOCK, folder)
            held.callback(os.close, handle)
            held.callback(remove, place / LOCK)
            os.truncate(handle, 0)
            os.write(handle, f"another planish (process {os.getpid()} on {platform.node()})".encode())
        yield


def _locked(path: Path, folder: Path) -> int:
    """Return a handle on it, locked where its system can. Raises BadInput if it is locked, ImportError, OSError."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
            raise BlockingIOError  # whoever held it has removed it just now, and a third may hold the next
    except BlockingIOError:
        os.close(handle)
        raise BadInput(f"{_holder(path)} is at work in {folder}; wait for it, or name another --out") from None
    except OSError as error:
        LOG.warning("planish: no lock on %s (%s): start nothing else in it meanwhile", folder, error.strerror)
    return handle


def _holder(path: Path) -> str:
    """Return who holds a lock, as far as it says so."""
    with suppress(OSError):
        said = path.read_bytes()[:200].decode(errors="replace")
        return said if re.fullmatch(r"another planish \(process [0-9]+ on [\w.-]*\)", said) else "another planish"
    return "another planish"


def _tidy(made: list[Path]) -> None:
    """Remove those of the folders that are empty, the innermost first."""
    with suppress(OSError):
        for folder in made:
            folder.rmdir()
