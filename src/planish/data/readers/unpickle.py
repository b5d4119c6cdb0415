"""Read a pickle of plain containers and NumPy arrays, and nothing else.

A pickle may name any function of Python and have it called. Here the names that stand for NumPy's own array
reconstruction are answered; every other name is refused before anything is called.
"""

import io
import pickle
from typing import Any

import numpy as np

from planish.core.errors import BadInput


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, which pickles of protocol 2 use for bytes: latin1 only."""
    if encoding != "latin1":
        raise BadInput(f"a pickle asks for the encoding '{encoding}': only arrays and plain containers are read")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise BadInput(
                f"a pickle asks for {module_name}.{global_name}: only arrays and plain containers are read"
            ) from None


def read_arrays(data: bytes, name: str) -> Any:
    """Return what the pickle holds. Raises BadInput if it asks for any other object or is damaged."""
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    except Exception as error:
        # A damaged pickle may raise anything; the documentation of pickle names no complete list.
        raise BadInput(f"{name}: not a readable pickle ({type(error).__name__})") from None
