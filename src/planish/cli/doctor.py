"""`planish doctor`: what is installed, on what it computes, and what is slow."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from planish.cli import options, terminal
from planish.cli.memory import OWN_CHOICE
from planish.core.words import number_of

if TYPE_CHECKING:
    from planish.runs.doctor import Machine


def doctor(json_: options.Json = False) -> None:
    """Say what is installed here, on what planish computes, and what makes it slow."""
    from planish.runs.doctor import diagnose

    found = diagnose(OWN_CHOICE)
    if json_:
        return terminal.print_json(found.document())
    missing = {name: versions for name, versions in found.extras.items() if None in versions.values()}
    there = {name: versions for name, versions in found.extras.items() if name not in missing}
    facts = {"installed": _versions(found.versions), **_machine_words(found.machine), **found.folders}
    facts["extras that are there"] = "; ".join(f"{name} ({_versions(own)})" for name, own in there.items()) or "none"
    facts["extras that are not"] = ", ".join(missing) or "none"
    terminal.print_lines(facts, {})
    if missing:
        name = next(iter(missing))
        terminal.print_line(f"an extra is installed with its packages: pip install {' '.join(missing[name])} is {name}")
    for one in found.slow:
        terminal.print_line(f"slow: {one.why}", "yellow")
        terminal.print_line(f"  what to do: {one.remedy}")
    if not found.slow:
        terminal.print_line("nothing here makes planish slow")


def _versions(found: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())


def _machine_words(machine: "Machine") -> dict[str, str]:
    """Word what planish computes on, a line for each thing."""
    gpus = [f"{gpu.name}, {gpu.free / 1e9:.1f} of {gpu.memory / 1e9:.1f} GB free" for gpu in machine.gpus]
    built = f"CUDA {machine.cuda}" if machine.cuda else "CPUs"
    threads = f"{number_of(machine.threads, 'thread')} on {machine.cores:g} cores"
    load = "" if machine.load is None else f", load {machine.load:.1f}"
    memory = f"{machine.free / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free" if machine.memory else "unknown"
    return {
        "processor": f"{machine.processor} ({machine.vector}), {threads}{load}",
        "memory": memory,
        "GPUs": "; ".join(gpus) or "none",
        "PyTorch is built for": built,
    }
