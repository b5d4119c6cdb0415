"""Files written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.errors import BadInput


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
