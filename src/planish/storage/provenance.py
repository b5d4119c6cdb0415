"""Where a result comes from: versions, device, code and the command."""

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("planish", "torch", "numpy", "safetensors")


@cache
def code_digest() -> str:
    """Return the SHA-256 of the package's own source files."""
    digest = hashlib.sha256()
    home = Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        digest.update(str(path.relative_to(home)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def commit() -> str | None:
    """Return the git commit of the source tree, with "+changes" if it has any, or None outside a checkout."""
    home = Path(__file__).parents[1]
    try:
        head = subprocess.run(
            ["git", "-C", str(home), "describe", "--always", "--abbrev=40", "--dirty=+changes"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip()


def device_name(device: torch.device | str) -> str:
    """Return what the device calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Return versions, code digest, commit, device and command line, JSON-able."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "code_digest": code_digest(),
        "commit": commit(),
        "device": device_name(device),
        "command": " ".join([_program(), *sys.argv[1:]]),
    }


def _program() -> str:
    """Return what was called: `python -m planish` is planish."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
