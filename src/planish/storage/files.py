"""Files written whole or not at all, one process at a time in a folder, and where planish's own files lie."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.core.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading arrays from a file that is damaged or something else raises; FileNotFoundError is an OSError."""


def write_bytes(content: bytes, path: str | Path) -> None:
    """Write a file beside the path, flush it to disk and move it there in one step; folders are made.

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
        temporary.replace(path)
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror or error}; choose another folder or free space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text atomically. Raises BadInput."""
    write_bytes(text.encode(), path)


def write_json(document: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON document atomically. ValueError when it holds NaN or infinity."""
    write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", path)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def write_arrays(path: str | Path, **arrays: "NDArray[Any]") -> None:
    """Write one compressed .npz without pickle, as `write_bytes` does."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(content.getvalue(), path)


def read_arrays(path: str | Path) -> "dict[str, NDArray[Any]]":
    """Read all arrays of an .npz without pickle, each byte tested. Raises one of UNREADABLE."""
    import numpy as np

    content = io.BytesIO(Path(path).read_bytes())
    with zipfile.ZipFile(content) as tested:
        if tested.testzip() is not None:
            raise zipfile.BadZipFile("damaged")
    content.seek(0)
    with np.load(content, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def home() -> Path:
    """Return $PLANISH_HOME, else the user's cache folder for planish. It need not exist."""
    if chosen := os.environ.get("PLANISH_HOME"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("planish"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep the other planish commands of this user on this machine out of the folder meanwhile.

    The lock is the system's, on a file in planish's cache, so that nothing need be in the folder yet and a killed
    process leaves nothing locked. Raises BadInput where another command is at work. Without file locks (Windows) or a
    cache that can be written, nothing is kept out.
    """
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            path = home() / "locks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"another planish is at work in {folder}; wait for it, or name another --out") from None
        yield
