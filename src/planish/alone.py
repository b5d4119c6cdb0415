"""One process at a time in a folder of results."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planish.data.home import home
from planish.errors import BadInput


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep the other planish commands of this user on this machine out of the folder meanwhile.

    The lock is the system's, on a file in planish's cache, so that nothing need be in the folder yet and a killed
    process leaves nothing locked. Raises BadInput where another command is at work. Without file locks (Windows) or a
    cache that can be written, nothing is kept out.
    """
    try:
        import fcntl

        from planish.files import open_for_a_lock

        handle = open_for_a_lock(_place(folder))
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another planish is at work in {folder}; wait for it, or name another --out") from None
        yield
    finally:
        os.close(handle)


def _place(folder: Path) -> Path:
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return home() / "locks" / digest[:32]
