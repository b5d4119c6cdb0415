"""What a command is told of its threats: a norm and a radius, or several of them whole."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.core.threat import ThreatModel
    from planish.runs.judge import EvaluationConfig


def ball(task: "EvaluationConfig", radius: str | None) -> dict[str, Any]:
    """Return the options of the first threat, its radius as it was given if it was."""
    return {"radius": radius or task.threat.radius, "norm": task.threat.name}


def given(
    norm: str, radius: str | float | None, threats: list[str] | None, levels: int | None
) -> "tuple[ThreatModel, ...]":
    """Return the threat of a norm and a radius, or those that are given whole. Raises BadInput."""
    from planish.evaluation.unions import threats_of
    from planish.runs.given import threat_in

    if radius is None and not threats:
        raise BadInput("Missing option '--radius', or --threat NORM:RADIUS such as --threat Linf:8/255 --threat L2:0.5")
    if radius is not None and threats:
        raise BadInput("--threat says norm and radius: leave --radius out, or give it alone")
    if not threats:
        return (threat_in(norm, radius or 0.0, levels),)
    return tuple(replace(one, levels=levels) for one in threats_of([*threats]).threats)
