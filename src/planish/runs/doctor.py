"""What is installed here, on what planish computes, and what makes it slow."""

import math
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from planish.records.origin import device_name
from planish.storage.files import home

REQUIREMENT = re.compile(r"(?P<package>[\w.-]+)[^;]*(;.*extra == ['\"](?P<extra>[\w-]+)['\"])?")
DEVELOPERS = ("all", "docs", "integrations", "maite", "queue", "test")
"""Extras that only who develops planish wants."""
CGROUP = Path("/sys/fs/cgroup/cpu.max")
SPARSE = 2e9
"""Bytes of memory below which a batch of a common network may not fit."""
DEBUGGING: dict[str, Callable[[], bool]] = {
    "torch.autograd's anomaly mode": torch.is_anomaly_enabled,
    "CUDA_LAUNCH_BLOCKING": lambda: os.environ.get("CUDA_LAUNCH_BLOCKING", "0") != "0",
    "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "Python's development mode": lambda: sys.flags.dev_mode,
    "a debugger, profiler or coverage": lambda: sys.gettrace() is not None or sys.getprofile() is not None,
    "TORCH_DISTRIBUTED_DEBUG": lambda: os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF") not in ("OFF", "INFO"),
}
"""What slows PyTorch down while somebody looks for a mistake, and whether it is on."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory and what is free of it, in bytes; bf16: whether it computes in it."""

    name: str
    memory: int
    free: int
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What planish computes on.

    cores: that this process may use, a share of them where a container allows no more. omp: $OMP_NUM_THREADS. load: how
    many processes want a core, None = unknown. memory, free: bytes, 0 = unknown. cuda: the version that PyTorch was
    built for, "" = for CPUs. vector: the widest instructions that it uses. debugging: what is on. malloc: variables
    that choose how memory is given back, as far as they are set.
    """

    processor: str
    cores: float
    threads: int
    omp: str
    load: float | None
    memory: int
    free: int
    cuda: str
    gpus: tuple[Gpu, ...]
    vector: str
    debugging: tuple[str, ...]
    malloc: tuple[str, ...]


@dataclass(frozen=True)
class Slow:
    """Something that makes planish slow here, and what to do."""

    why: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What is installed (a version, None = it is not there), where planish keeps its files, and what is slow."""

    versions: dict[str, str | None]
    extras: dict[str, dict[str, str | None]]
    folders: dict[str, str]
    machine: Machine
    slow: tuple[Slow, ...]

    def document(self) -> dict[str, Any]:
        """Return it as one JSON-able document."""
        return asdict(self)


def diagnose(malloc: Sequence[str] = ()) -> Diagnosis:
    """Look at this machine. malloc: variables that choose how memory is given back, and so slow passes down."""
    needed, extras = installed()
    machine = this_machine(malloc)
    folders = {"working folder": str(Path.cwd()), "planish's own": str(home())}
    return Diagnosis({"python": platform.python_version(), **needed}, extras, folders, machine, tuple(slow(machine)))


def installed() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Return the versions of planish and of what it needs, and by extra of what else it can use."""
    needed, extras = {"planish": _version("planish")}, dict[str, dict[str, str | None]]()
    for line in (requires("planish") or []) if needed["planish"] else []:
        found = REQUIREMENT.match(line)
        assert found is not None
        package, extra = found["package"], found["extra"]
        if extra is None:
            needed[package] = _version(package)
        elif extra not in DEVELOPERS:
            extras.setdefault(extra, {})[package] = _version(package)
    return needed, extras


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def this_machine(malloc: Sequence[str] = ()) -> Machine:
    """Return what this process computes on. malloc: as for `diagnose`."""
    memory, free = _memory()
    return Machine(
        processor=device_name("cpu").rpartition(", ")[0],
        cores=_cores(),
        threads=torch.get_num_threads(),
        omp=os.environ.get("OMP_NUM_THREADS", ""),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory=memory,
        free=free,
        cuda=torch.version.cuda or "",
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))) if torch.cuda.is_available() else (),
        vector=torch.backends.cpu.get_cpu_capability(),
        debugging=tuple(name for name, is_on in DEBUGGING.items() if is_on()),
        malloc=tuple(name for name in malloc if name in os.environ),
    )


def _cores() -> float:
    """Return how many cores this process may use: those that it is bound to, or the share that its container has."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text().split()
        return min(bound, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or one without a limit: "max 100000"
        return bound


def _memory() -> tuple[int, int]:
    """Return the bytes of memory of the machine, and those that are free; 0 = unknown."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        first, second = (1024 * int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    return first, second


def _gpu(number: int) -> Gpu:
    free, memory = torch.cuda.mem_get_info(number)
    major, _ = torch.cuda.get_device_capability(number)
    return Gpu(torch.cuda.get_device_name(number), memory, free, major >= 8)


def slow(machine: Machine) -> list[Slow]:
    """Say what makes planish slow on a machine, what costs most first."""
    return [*_accelerator(machine), *_threads(machine), *_strain(machine), *_settings(machine)]


def _accelerator(machine: Machine) -> list[Slow]:
    if not machine.gpus:
        if machine.cuda:
            why = f"PyTorch is built for CUDA {machine.cuda} and finds no GPU"
            return [Slow(why, "see whether nvidia-smi lists one, and whether CUDA_VISIBLE_DEVICES hides it")]
        remedy = "on a machine with a GPU, install PyTorch's build for it; without one, keep networks small"
        return [Slow("there is no accelerator: PyTorch is built for CPUs", remedy)]
    busy = [gpu for gpu in machine.gpus if gpu.free < gpu.memory / 2]
    told = [f"{gpu.name} has {gpu.free / 1e9:.1f} of {gpu.memory / 1e9:.1f} GB free" for gpu in busy]
    return [Slow(why, "others are at work on it: wait, or --device cuda:N takes another") for why in told]


def _threads(machine: Machine) -> list[Slow]:
    cores = max(1, math.floor(machine.cores))
    if machine.threads > cores:
        why = f"PyTorch computes in {machine.threads} threads, and there are {machine.cores:g} cores"
        return [Slow(f"{why}: they wait for each other", f"set OMP_NUM_THREADS={cores}")]
    if machine.threads < cores and not machine.gpus:
        why = f"PyTorch computes in {machine.threads} of {cores} cores"
        set_ = f", because OMP_NUM_THREADS is {machine.omp}" if machine.omp else ""
        return [Slow(f"{why}{set_}", f"set OMP_NUM_THREADS={cores}, unless other processes have the rest")]
    return []


def _strain(machine: Machine) -> list[Slow]:
    found = []
    if machine.load is not None and machine.load > 1.5 * max(1, machine.cores):
        why = f"{machine.load:.1f} processes want a core, and there are {machine.cores:g}"
        found.append(Slow(why, "wait for them, or end what is not needed; times that are measured now say little"))
    if 0 < machine.free < SPARSE:
        why = f"{machine.free / 1e9:.1f} GB of memory are free"
        found.append(Slow(why, "--batch-size 32 takes less at a time, for the same outcome"))
    return found


def _settings(machine: Machine) -> list[Slow]:
    found = [Slow(f"{name} is on", "turn it off, unless you look for a mistake") for name in machine.debugging]
    if machine.vector == "DEFAULT":
        why = "PyTorch uses none of the processor's vector instructions"
        found.append(Slow(why, "unset ATEN_CPU_CAPABILITY, or take a build of PyTorch for this processor"))
    if machine.malloc:
        why = f"{', '.join(machine.malloc)} is set, so that freed memory may be given back after every pass"
        found.append(Slow(why, "unset it, and the commands keep freed memory: up to a tenth faster on a CPU"))
    return found
