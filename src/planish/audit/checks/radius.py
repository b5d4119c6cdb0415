"""Does accuracy fall with the radius as it must, down to nothing where any image can become any other."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from planish.audit.check import Seen, check, of_sample, share
from planish.audit.evidence import Evidence
from planish.audit.measures.surfaces import INSIDE, is_distorted
from planish.core.arguments import logits_of
from planish.core.losses import margin
from planish.core.threat import ThreatModel

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@check((12,), warn_at=1.0, fail_at=5.0, needs="gradients", correct="sampled")
def boundary_distortion(evidence: Evidence) -> Seen:
    """A full gradient step never fails where a shorter one along the same line succeeds."""
    batch, margins = evidence.correct_sample, [torch.where(evidence.fgsm_broken, 1.0, -1.0)]
    for factor in INSIDE:
        x = evidence.stepped(evidence.threat.scaled(factor))
        margins.insert(-1, margin(logits_of(evidence.model, x), batch.labels))
        evidence.record("short-steps", evidence.correct_rows[margins[-2] >= 0], x[margins[-2] >= 0])
    return of_sample(
        evidence,
        is_distorted(torch.stack(margins, 1)),
        "A full gradient step fails and a shorter one along the same line breaks {of}.",
        "The decision boundary is distorted along the gradient, as after training on single steps: train with several "
        "steps, and judge with small steps and many radii.",
    )


@check((21,), warn_at=0.0, fail_at=0.2, needs="gradients", correct="sampled")
def radius_curve(evidence: Evidence) -> Seen:
    """Accuracy under PGD falls as the radius grows."""
    total = len(evidence.rows)
    robust = [int((~_broken(evidence, evidence.threat.scaled(factor))).sum()) for factor in MULTIPLES]
    rises = [later - earlier for earlier, later in pairwise(robust)]
    curve = ", ".join(
        f"{100 * left / total:.1f} % at {factor:g}" for factor, left in zip(MULTIPLES, robust, strict=True)
    )
    return share(
        max(0, *rises),
        total,
        f"Under PGD accuracy is {curve} radii; its largest rise is of {{of}}.",
        "A larger ball holds the smaller one, so the attack fails in it: its gradients mislead; use more steps, and "
        "trust black-box attacks more.",
        multiples=list(MULTIPLES),
        standing=robust,
    )


@check((22,), fail_at=1.0, needs="graph", correct="sampled")
def unbounded(evidence: Evidence) -> Seen:
    """In a ball in which every image can become grey nothing survives."""
    grey = float(evidence.threat.norm(torch.full_like(evidence.images.x[:1], 0.5)))
    threat = replace(evidence.threat, radius=grey)
    return of_sample(
        evidence,
        ~_broken(evidence, threat),
        f"Under PGD in the {threat.name} ball of radius {threat.radius:.3g}, where every image can become grey, "
        "{of} are still classified correctly.",
        "No classifier can be right there: the attack fails for want of useful gradients, and its figures at smaller "
        "radii are too high as well.",
    )


def _broken(evidence: Evidence, threat: ThreatModel) -> Tensor:
    """Return which correct images PGD on the margin breaks at this radius, (n,)."""
    attack = evidence.margin_pgd(evidence.plan.curve_steps)
    return evidence.broken_by(f"pgd-margin at {threat.radius:.4g}", attack, evidence.correct_rows, threat)


COMPONENTS = {"boundary-distortion": boundary_distortion, "radius-curve": radius_curve, "unbounded": unbounded}
