"""An audit as a file and as a document."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish import portraits
from planish.audit import ARRAYS, SEVERITY, Audit, Finding
from planish.errors import BadInput
from planish.estimates import Estimate, counts
from planish.files import UNREADABLE, read_arrays, write_arrays, write_json
from planish.portraits import Portrait

RECORD, DOCUMENT = "audit.npz", "audit.json"
_MISFITS = (*UNREADABLE, AttributeError, KeyError, TypeError)


def to_json(audit: Audit) -> dict[str, Any]:
    """Return everything but the arrays as one JSON-able document; shares are in [0, 1]."""
    return {
        "verdict": audit.verdict,
        "headline": audit.headline(),
        "robust": _share(audit.robust_accuracy()) | audit.meta["threat"],
        "clean": _share(audit.clean_accuracy()),
        "attacks": list(audit.attacks),
        "fell_to": audit.fell_to(),
        "findings": [asdict(finding) for finding in audit.findings],
        "portrait": None if audit.portrait is None else portraits.facts(audit.portrait, audit.indices),
        "meta": audit.meta,
    }


def from_json(
    document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], portrait: Portrait | None = None
) -> Audit:
    """Return the audit of such a document, its per-image arrays and its portrait.

    Raises BadInput for a verdict that is none.
    """
    findings = tuple(Finding(**facts) for facts in document["findings"])
    strange = [finding.verdict for finding in findings if finding.verdict not in SEVERITY]
    if strange:
        raise BadInput(f"'{strange[0]}' is no verdict; known: {', '.join(SEVERITY)}")
    own: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
    return Audit(findings, **own, attacks=tuple(document["attacks"]), meta=document["meta"], portrait=portrait)


def save(audit: Audit, folder: Path) -> None:
    """Write audit.npz, the whole record, and audit.json, the same without the arrays, for readers.

    The portrait, if there is one, is written before them into portrait.npz.
    """
    document = to_json(audit)
    arrays = {name: getattr(audit, name) for name in ARRAYS}
    if audit.portrait is not None:
        portraits.save(audit.portrait, folder)
    write_arrays(folder / RECORD, **arrays, document=np.array(json.dumps(document, allow_nan=False)))
    write_json(document, folder / DOCUMENT)


def load(folder: Path) -> Audit:
    """Read what `save` wrote. Raises BadInput when it is missing, cut short or something else."""
    path = folder / RECORD
    try:
        arrays = read_arrays(path)
        document = json.loads(str(arrays["document"]))
        return from_json(document, arrays, portraits.load(folder) if document.get("portrait") else None)
    except FileNotFoundError:
        raise BadInput(f"there is no audit in {folder}; make one with: planish audit ... --out {folder}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except _MISFITS as error:
        raise BadInput(f"{path} is not a planish audit, or it is cut short; audit again") from error


def _share(share: Estimate) -> dict[str, Any]:
    return {"accuracy": share.value} | counts(share)
