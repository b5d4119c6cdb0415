"""Files read back: one reader for each kind, sizes known before anything is allocated, digests checked.

Whatever is wrong with a file is one BadInput. Files of an earlier planish, which carry no digest, are read as they are.
"""

import hashlib
import io
import json
import logging
import math
import os
import re
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from planish.core.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Found = TypeVar("Found")
LOG = logging.getLogger("planish")
UNREADABLE = (OSError, ValueError)
"""What reading arrays from a file that is damaged or something else raises; FileNotFoundError is an OSError."""
DIGEST = "sha256"
"""What a file's digest of its content is called in it."""
SEAL = re.compile(rb"\nplanish sha256 ([0-9a-f]{64})\n")
SEALED = 81
"""Bytes of a seal."""
MEMORY_SHARE = 0.5
"""Of the machine's memory: how much the arrays of one file may take, unless $PLANISH_MAX_BYTES says otherwise."""


class Damaged(BadInput):
    """A file is not as it was written."""


def previous(path: Path) -> Path:
    """Return where the save before a file's last one lies, such as resume.previous.pt."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def last_good(path: Path, read: Callable[[Path], Found]) -> tuple[Found, str]:
    """Return what a file holds, or the save before it if the file is damaged, and a note on that, "" = it is whole.

    Raises BadInput as `read` does, if there is no save before or it is damaged as well.
    """
    try:
        return read(path), ""
    except Damaged as error:
        if not previous(path).is_file():
            raise
        found, note = read(previous(path)), f"{error}; used the save before it, {previous(path).name}"
    LOG.warning("planish: %s", note)
    return found, note


def most_bytes() -> int:
    """Return how much one file may hold when unpacked: $PLANISH_MAX_BYTES, else half of the memory. Raises BadInput."""
    if chosen := os.environ.get("PLANISH_MAX_BYTES"):
        if not re.fullmatch(r"[0-9]{1,18}", chosen):
            raise BadInput(f"PLANISH_MAX_BYTES is '{chosen}': give a number of bytes, for instance 8000000000")
        return int(chosen)
    try:
        return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 2**33


def refuse_large(what: str | Path, size: int) -> None:
    """Raise BadInput if something of so many bytes is more than one file may hold."""
    if size > (most := most_bytes()):
        sizes = f"{size / 1e9:.3g} GB, more than the {most / 1e9:.3g} GB that are allowed"
        raise BadInput(f"{what} takes {sizes}; if that is meant, set PLANISH_MAX_BYTES to at least {size}")


def content_of(path: str | Path) -> bytes:
    """Return a file's bytes. Raises OSError, BadInput for one that is too large or no plain file."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise IsADirectoryError(f"{path} is no file")
    refuse_large(path, path.stat().st_size)
    return path.read_bytes()


def sealed(content: bytes) -> bytes:
    """Return a zip file's content with its digest behind it, which programs that unzip it pass over."""
    return content + f"\nplanish sha256 {hashlib.sha256(content).hexdigest()}\n".encode()


def is_sealed(path: Path) -> bool:
    """Say whether a file ends with a seal, as all arrays do that planish writes."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEALED))
        return SEAL.fullmatch(file.read(SEALED)) is not None


def unsealed(content: bytes) -> bytes:
    """Return what was sealed; a whole zip file without a seal stays. Raises ValueError for another digest."""
    own, seal = content[:-SEALED], SEAL.fullmatch(content[-SEALED:])
    if seal is None:
        if content[-22:-18] != b"PK\x05\x06":  # where the end of a zip file says so, unless a part was cut off
            raise ValueError("it is cut short")
        return content
    if hashlib.sha256(own).hexdigest().encode() != seal[1]:
        raise ValueError("its bytes have another digest than when they were written")
    return own


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the digest of a JSON document without its own one."""
    own = {key: value for key, value in document.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with its digest in it."""
    return {**document, DIGEST: document_digest(document)}


def documents(path: Path, remedy: str, parts: Callable[[str], list[str]]) -> list[dict[str, Any]]:
    """Return the JSON documents of a file's parts, without their digests, once these are tested.

    remedy: what to do if it is damaged. Raises BadInput, Damaged, FileNotFoundError.
    """
    try:
        found = [json.loads(part) for part in parts(content_of(path).decode())]
        for document in found:
            if not isinstance(document, dict):
                raise ValueError("it holds no document")
            if document.pop(DIGEST, digest := document_digest(document)) != digest or _misnamed(document):
                raise ValueError("its values are not those that were written")
    except (FileNotFoundError, BadInput):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({_reason(error)}); {remedy}") from error
    return found


def _misnamed(document: Mapping[str, Any]) -> bool:
    """Say whether a key holds the digest of all others: then the digest's own name is damaged."""
    return any(
        document_digest({key: value for key, value in document.items() if key != name}) == found
        for name, found in document.items()
        if isinstance(found, str) and len(found) == 64
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the document of a JSON file, as `documents` does."""
    return documents(path, remedy, lambda text: [text])[0]


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """Return the documents of a file with one a line, as `documents` does."""
    return documents(path, remedy, str.splitlines)


def lines_of(text: str, name: str | Path) -> list[str]:
    """Return a list's lines without spaces round them; empty ones at its end are none.

    name: what messages call it. Raises BadInput for an empty line above others, as leaving it out would move these.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise BadInput(
            f"{name}: line {lines.index('') + 1} is empty, and each line has its number: fill it, or remove it"
        )
    return lines


def toml_of(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; a mark of the byte order before it is left out. Raises ValueError."""
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises BadInput."""
    try:
        return toml_of(content_of(path).decode())
    except FileNotFoundError:
        raise BadInput(f"no configuration file {path}") from None
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not TOML: {_reason(error)}") from error


HEAD = f"# {DIGEST} of the lines below: "
"""How a TOML file begins that planish wrote."""


def headed(text: str) -> str:
    """Return a TOML text with its digest in a comment above it, as `read_headed` tests it."""
    return f"{HEAD}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def read_headed(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file that planish wrote. Raises BadInput if its lines are others now."""
    if not (tables := read_toml(path)):
        raise Damaged(f"{path} is empty; put it back, or train in another folder")
    head, _, text = content_of(path).decode().partition("\n")
    found = re.fullmatch(rf"{HEAD}([0-9a-f]{{64}})", head)
    if found and hashlib.sha256(text.encode()).hexdigest() != found[1]:
        raise Damaged(f"{path} is damaged, or was edited; put it back, or train in another folder")
    return tables


def read_arrays(path: str | Path) -> "dict[str, NDArray[Any]]":
    """Read all arrays of an .npz that planish wrote, each byte tested. Raises one of UNREADABLE, or BadInput."""
    return unpacked(io.BytesIO(unsealed(content_of(path))), path)


def unpacked(file: BinaryIO, name: str | Path) -> "dict[str, NDArray[Any]]":
    """Return the arrays of an open .npz, nothing unpickled, once its headers say no more than the file holds.

    name: what messages call it. Raises one of UNREADABLE, or BadInput for more than may be unpacked.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            refuse_large(name, sum(member.file_size for member in members))
            for member in members:
                with archive.open(member) as opened:
                    _check_header(opened, member)
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise anything on bytes that are not theirs
        raise ValueError(f"{type(error).__name__}: {_reason(error)}") from error


def _check_header(opened: Any, member: zipfile.ZipInfo) -> None:
    """Raise ValueError if an array's header claims another size than there are bytes."""
    from numpy.lib import format as layout

    if not member.filename.endswith(".npy"):
        return
    version = layout.read_magic(opened)
    read = {(1, 0): layout.read_array_header_1_0, (2, 0): layout.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{member.filename} is of an unknown version")
    shape, _, dtype = read(opened)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they would have to be unpickled")
    if opened.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{member.filename} claims {shape} numbers and holds {member.file_size} bytes")


def tensors_digest(tensors: "dict[str, Tensor]", about: Mapping[str, Any]) -> str:
    """Return the digest of tensors with their names, types and shapes, and of the JSON document about them."""
    import torch

    digest = hashlib.sha256(document_digest(about).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
