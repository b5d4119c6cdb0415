"""One process at a time in a folder of results."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planish.core.errors import BadInput
from planish.storage.home import home


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep the other planish commands of this user on this machine out of the folder meanwhile.

    The lock is the system's, on a file in planish's cache, so that nothing need be in the folder yet and a killed
    process leaves nothing locked. Raises BadInput where another command is at work. Without file locks (Windows) or a
    cache that can be written, nothing is kept out.
    """
    handle = _opened(folder)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _opened(folder: Path) -> int | None:
    """Return a handle on the folder's lock file; None if there can be none."""
    from planish.storage.files import open_for_a_lock

    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    try:
        return open_for_a_lock(home() / "locks" / digest[:32])
    except OSError:
        return None


def _lock(handle: int, folder: Path) -> None:
    """Lock the file where its system can. Raises BadInput if it is locked."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another planish is at work in {folder}; wait for it, or name another --out") from None
    except (ImportError, OSError):
        return
