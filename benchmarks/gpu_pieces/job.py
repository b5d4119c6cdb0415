"""What a piece is given, and its file: rows by name, written after every row, so that a kill loses one at most."""

import json
import math
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from planish.records.origin import provenance
from planish.storage.files import write_json

Row = dict[str, Any]
SHOWN = 6
"""Lines of a traceback that a row keeps."""


class OutOfTime(Exception):
    """The piece's time is over; what it was at is not recorded."""


class Broken(Exception):
    """The device answers no more in this process: a CUDA error poisons it."""


@dataclass
class Job:
    """One piece at work: `OUT/NAME.json` holds its rows, `work` what is too large to keep.

    deadline: on the monotonic clock. call: the call of gpu.py that this is part of; a row that failed is measured again
    by another call. rows: by name, what is measured, each with the number of the attempt that measured it.
    """

    name: str
    out: Path
    work: Path
    device: torch.device
    tiny: bool
    data: Path | None
    deadline: float
    call: str
    document: dict[str, Any] = field(default_factory=dict)
    left_out: bool = False

    @property
    def rows(self) -> dict[str, Row]:
        """What is measured."""
        rows: dict[str, Row] = self.document["rows"]
        return rows

    @property
    def path(self) -> Path:
        """The piece's file."""
        return self.out / f"{self.name}.json"

    def begin(self, commit: str | None) -> None:
        """Read what earlier attempts have measured, and enter this one."""
        empty: dict[str, Any] = {"piece": self.name, "tiny": self.tiny, "attempts": [], "rows": {}}
        self.document = json.loads(self.path.read_text()) if self.path.exists() else empty
        self.document.pop("at", None)
        self.document["attempts"].append(about(self.device, self.call, commit))
        self.end("begun")

    def end(self, state: str) -> None:
        """Enter how the attempt stands."""
        self.document["state"] = self.document["attempts"][-1]["state"] = state
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.document, self.path)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def done(self, key: str) -> bool:
        """Say whether a row is measured, or failed in this call."""
        row = self.rows.get(key)
        return row is not None and not row.get("partial") and ("error" not in row or row["call"] == self.call)

    def row(self, key: str, measure: Callable[[], Row], least: float = 1.0) -> None:
        """Measure a row unless it is there or fewer than `least` seconds are left; a failure is a row too.

        Raises Broken after a CUDA error.
        """
        if self.done(key):
            return
        if self.left() < least:
            self.left_out = True
            return
        self.document["at"] = key
        self.save()
        began = time.monotonic()
        try:
            self.add(key, measure(), began)
        except OutOfTime:
            self.left_out = True
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()[-SHOWN:]
            failed = {"error": f"{type(error).__name__}: {error}"[:500], "trace": lines, "partial": False}
            self.add(key, {**self.rows.get(key, {}), **failed}, began)
            if "CUDA error" in str(error):
                raise Broken(key) from error
        self.document.pop("at", None)
        self.save()

    def add(self, key: str, row: Row, began: float) -> None:
        """Enter a row, or what is known of it so far, and write the file."""
        taken = round(time.monotonic() - began, 3)
        marks = {"taken": taken, "attempt": len(self.document["attempts"]) - 1, "call": self.call}
        self.rows[key] = {**plain(row), **marks}
        self.save()
        print(f"{self.name}: {key}: {json.dumps(plain(row))[:300]}", flush=True)

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clock(self) -> float:
        """Return the seconds on the wall, the device having done what it was told."""
        self.wait()
        return time.perf_counter()


def plain(value: Any) -> Any:
    """Return what JSON knows: numbers that are not finite become null, what is unknown becomes text."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def about(device: torch.device, call: str, commit: str | None) -> Row:
    """Return where an attempt's rows come from."""
    found = provenance(device)
    found["versions"]["cuda"], found["versions"]["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    found["commit"] = found["commit"] or commit
    return {"call": call, "card": card() if device.type == "cuda" else None, **found}


def card() -> Row:
    """Return what the driver says of the card."""
    fields = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        told = f"{torch.cuda.get_device_name()},unknown,{torch.cuda.get_device_properties(0).total_memory >> 20} MiB"
    return dict(zip(fields, (part.strip() for part in told.splitlines()[0].split(",")), strict=False))
