"""What a command is told of its threats: a norm and a radius, or several of them whole."""

from dataclasses import replace
from typing import TYPE_CHECKING

from planish.cli.terminal import next_command
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.core.threat import ThreatModel
    from planish.runs.judge import EvaluationConfig


def next_audit(model: str, task: "EvaluationConfig", radius: str | None, **given: object) -> str | None:
    """Return the command that audits in the ball of the first threat, its radius as it was given if it was.

    None = there is no such ball: of radius 0, or of a radius for each image or pixel, nothing can be audited.
    """
    from planish.core.weighted import Weighted

    if task.threat.radius == 0 or isinstance(task.threat, Weighted):
        return None
    ball = {"radius": task.threat.radius if radius is None else radius, "norm": task.threat.name}
    return next_command("audit", model, data=task.data, **ball, **given)


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
    if threats:
        return tuple(replace(one, levels=levels) for one in threats_of([*threats]).threats)
    assert radius is not None
    return (threat_in(norm, radius, levels),)
