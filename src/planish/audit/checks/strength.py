"""Is the attack strong enough: does more of it, less of it, or another radius find what the usual amount misses."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from planish.audit.check import Seen, Unknown, check, fact, mean, mean_of, named, of_sample, share
from planish.audit.evidence import Evidence
from planish.audit.measures.surfaces import INSIDE, is_distorted
from planish.core.arguments import logits_of
from planish.core.losses import margin
from planish.core.threat import ThreatModel
from planish.core.words import number_of, radius_text
from planish.search.objectives import inner
from planish.training.collapse import NONLINEAR_COSINE

FEW_STEPS = 10
STILL_LEFT = 8.0
"""Percent of the images: if long PGD leaves no more of those that stronger attacks break, short PGD alone was weak."""
LAST, RISING = 0.2, 0.05
"""A loss still rises if its best gains more than 5 % of its range in the last fifth of the steps."""
RISE_FLOOR = 1e-6
AIMED = ("targets", "sparse", "focus", "sweep", "apgd-t")
"""Stages of suites that aim at classes."""
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@check((11,), warn_at=0.1, fail_at=1.0, needs="gradients", correct="sampled")
def one_step(evidence: Evidence) -> Seen:
    """One gradient step breaks nothing that many steps miss."""
    many = evidence.trace.broken_by(evidence.plan.steps) | evidence.margin_broken
    missed = evidence.fgsm_broken & ~many
    return of_sample(
        evidence,
        missed,
        f"FGSM breaks {{of}} that PGD of {evidence.plan.steps} steps, on cross entropy and on the margin, does not.",
        "Many steps must never do worse than one: the loss surface misleads the attack; add restarts, smoothed "
        "gradients and black-box attacks.",
    )


@check((13,), warn_at=8.0, fail_at=12.0, needs="gradients", correct="sampled")
def weak_and_strong(evidence: Evidence) -> Seen:
    """Ten steps of PGD come close to the whole suite.

    Differs: it fails only where long PGD, on cross entropy or on the margin, leaves many of them too: where labels were
    smoothed or training was short, cross entropy is a weak guide, and gradients are honest.
    """
    few, steps = min(FEW_STEPS, evidence.plan.steps), evidence.plan.steps
    missed = ~evidence.trace.broken_by(few) & ~evidence.robust[evidence.correct_rows]
    still = missed & ~(evidence.trace.broken_by(steps) | evidence.margin_broken)
    seen = of_sample(
        evidence,
        missed,
        f"PGD of {number_of(few, 'step')} leaves {{of}} that stronger attacks break, and of {steps} steps, on cross "
        f"entropy and on the margin, {int(still.sum())} of these.",
        "A figure of a short PGD overstates this model; quote the suite's.",
    )
    return seen if 100 * int(still.sum()) > STILL_LEFT * len(evidence.rows) else replace(seen, sure=0.0)


@check((14,), warn_at=8.0, fail_at=15.0, needs="gradients", correct="sampled")
def one_step_gap(evidence: Evidence) -> Seen:
    """One gradient step breaks about as much as many: no catastrophic overfitting.

    Differs: it fails only where the gradients before and after the step disagree too, as the guard of training has it:
    FGSM is a weak attack on any undefended model, whose gradients are honest.
    """
    left = evidence.trace.broken_by(evidence.plan.steps) & ~evidence.fgsm_broken
    clean, stepped = (part.gradient.flatten(1) for part in (evidence.clean_gradients, evidence.fgsm_gradients))
    cosine = float(torch.cosine_similarity(clean, stepped).nan_to_num().mean())
    seen = of_sample(
        evidence,
        left,
        f"FGSM leaves {{of}} that PGD of {evidence.plan.steps} steps breaks, and gradients before and after it have a "
        f"cosine of {cosine:.2f}.",
        "The model withstands single steps only: after training on single steps this is catastrophic overfitting, so "
        "train with several steps or a regulariser; never judge it by FGSM.",
    )
    return seen if cosine < NONLINEAR_COSINE else replace(seen, sure=0.0)


@check((15,), unit="", warn_at=0.4, fail_at=1.0, needs="gradients", correct="sampled")
def linearity(evidence: Evidence) -> Seen:
    """The margin along a full gradient step is nearly linear, next to what PGD makes it rise.

    Differs: the margin in place of cross entropy, which bends by itself where a model is certain, linear or not.
    """
    batch = evidence.correct_sample
    value, _, gradient = evidence.gradients(batch, margin)
    moved = margin(evidence.fgsm_gradients.logits, batch.labels)
    error = (moved - value - inner(evidence.x_fgsm - batch.x, gradient)).abs()
    rise = (evidence.trace.margins[: evidence.plan.steps + 1].amax(0) - value).mean().clamp(min=RISE_FLOOR)
    return mean(
        error / rise,
        f"A full gradient step misses the linear prediction of the margin by {float(error.mean()):.3g}, which is "
        f"{float(error.mean() / rise):.2f} of the {float(rise):.3g} that PGD makes it rise, "
        f"{mean_of(error)}.",
        "One gradient does not describe the ball: the model is far from locally linear; rely on attacks of many steps.",
        error=float(error.mean()),
        rise=float(rise),
    )


@check((17,), warn_at=0.5, fail_at=1.0, needs="gradients", correct="sampled")
def more_steps(evidence: Evidence) -> Seen:
    """Twice the steps break hardly more."""
    steps = evidence.plan.steps
    late = evidence.trace.broken_by(2 * steps) & ~evidence.trace.broken_by(steps)
    late &= ~evidence.margin_broken
    return of_sample(
        evidence,
        late,
        f"PGD of {2 * steps} steps breaks {{of}} that {steps} steps, and as many on the margin, do not.",
        "The attack has not converged: use more steps, and a decaying step size.",
    )


@check((18,), warn_at=0.3, needs="gradients", level="standard", correct="sampled")
def more_restarts(evidence: Evidence) -> Seen:
    """A second start breaks hardly more."""
    first = evidence.margin_broken | evidence.trace.broken_by(evidence.plan.steps)
    rows = evidence.correct_rows[~first]
    again = torch.zeros_like(first)
    again[~first] = evidence.broken_by("pgd-margin-restart", evidence.margin_pgd(), rows)
    return of_sample(
        evidence,
        again,
        "A second start of PGD breaks {of} that the first ones did not.",
        "Starts matter here: use more restarts, and diverse ones (odi-pgd).",
    )


@check((19,), unit="", warn_at=0.55, worse="below", needs="gradients", correct="sampled")
def ascending_steps(evidence: Evidence) -> Seen:
    """Steps along the gradient mostly raise the loss."""
    few = min(FEW_STEPS, evidence.plan.steps)
    losses = evidence.trace.losses[: few + 1]
    rising = (losses.diff(dim=0) > 0).float().mean(0)
    return mean(
        rising,
        f"{100 * float(rising.mean()):.0f} % of the first {number_of(few, 'step')} of PGD raise the loss, "
        f"{mean_of(rising)}.",
        "Gradients do not lead uphill: the surface is rough or the gradients are wrong.",
        worse=-1,
    )


@check((19,), warn_at=10.0, needs="gradients", correct="sampled")
def still_rising(evidence: Evidence) -> Seen:
    """The best loss no longer rises when PGD ends."""
    losses = evidence.trace.losses[: evidence.plan.steps + 1]
    best = losses.cummax(0).values
    late = best[-1] - best[-1 - max(1, round(LAST * evidence.plan.steps))]
    rising = late > RISING * (best[-1] - losses[0]).clamp(min=RISE_FLOOR)
    return of_sample(
        evidence,
        rising & ~evidence.trace.broken_by(evidence.plan.steps),
        f"The loss of {{of}} that PGD has not broken still rises when its {evidence.plan.steps} steps end.",
        "The attack ends too early: use more steps.",
    )


@check((20,), warn_at=0.0)
def broken_stays_broken(evidence: Evidence) -> Seen:
    """Images that count as broken are misclassified when they are judged again in other batches."""
    broken = evidence.suite_broken
    x_adv, labels = evidence.judged.x_adv[broken], evidence.images.labels[broken]
    lost = int((margin(logits_of(evidence.model, x_adv, 37), labels) < 0).sum()) if len(x_adv) else 0
    silent = 0
    if not evidence.black_box and evidence.has_gradients and len(evidence.correct_rows):
        trace = evidence.trace
        silent = int((trace.broken_by(len(trace.margins)) & (trace.margins[-1] < 0)).sum())
    return share(
        lost,
        len(broken),
        f"{lost} of {number_of(len(x_adv))} that the suite broke are right again when judged once more; {silent} "
        "were adversarial on the way of PGD and are not at its last step.",
        "The verdicts hang on rounding or chance: judge in float32 and evaluation mode, and count the first success.",
        silent=silent,
    )


@check((27,), warn_at=6.0, needs="gradients", classes=3)
def targeted(evidence: Evidence) -> Seen | Unknown:
    """Aiming at classes breaks little that the untargeted scout missed."""
    record, name = evidence.judged.evaluation, evidence.suite_name
    stages = [column.name for column in record.columns if column.name.removeprefix(f"{name}/") in AIMED]
    if not stages:
        return Unknown("The suite has no stages that aim at classes.", "Audit with planish-suite.")
    hits = sum(int(record.broken_by(stage).sum()) for stage in stages)
    return share(
        hits,
        len(record.labels),
        "Attacks that aim at classes break {of} that untargeted ones missed.",
        "Untargeted attacks are misled here; never quote them alone.",
    )


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
def unbounded(evidence: Evidence) -> Seen | Unknown:
    """In a ball in which every image can become grey nothing survives."""
    low, high = evidence.threat.low, evidence.threat.high
    middle = torch.full_like(evidence.images.x[:1], (low + high) / 2)
    threat = replace(evidence.threat, radius=float(evidence.threat.norm(high - middle)))
    beaten = evidence.correct_sample.labels != logits_of(evidence.model, middle).argmax(1)
    if not beaten.any():
        return Unknown("Grey is of the class of every image that is right.", "Audit images of more classes.")
    return of_sample(
        evidence,
        ~_broken(evidence, threat) & beaten,
        f"Under PGD in the {threat.name} ball of radius {radius_text(threat.radius)}, where every image can become "
        "grey, {of} are still classified correctly, and grey is not.",
        "No classifier can be right there: the attack fails for want of useful gradients, and its figures at smaller "
        "radii are too high as well.",
    )


@check((24,), unit="reasons", warn_at=0.0)
def escalation(evidence: Evidence) -> Seen | Unknown:
    """The suite's own ledger gives it no cause for its long stages."""
    find, record = getattr(evidence.suite, "reasons", None), evidence.judged.evaluation
    if find is None:
        return Unknown("The suite does not say when its short stages are not enough.", "Audit with planish-suite.")
    stages = {column.name.removeprefix(f"{evidence.suite_name}/"): column for column in record.columns}
    reasons: tuple[str, ...] = find(stages, len(record.labels))
    told = "; ".join(reasons) or "nothing in its short stages looks wrong"
    done = list(reasons) in [column.meta.get("because") for column in record.columns]
    then = "its long stages were run" if done else "its long stages were left out of this budget"
    return fact(
        float(len(reasons)),
        f"The suite: {told}" + (f"; {then}." if reasons else "."),
        "Look at what the other checks say of this model."
        if done
        else "Audit with --budget standard: short attacks are not enough for this model.",
        reasons=list(reasons),
    )


def _broken(evidence: Evidence, threat: ThreatModel) -> Tensor:
    """Return which correct images PGD on the margin breaks at this radius, (n,)."""
    attack = evidence.margin_pgd(evidence.plan.curve_steps)
    return evidence.broken_by(f"pgd-margin at {threat.radius:.4g}", attack, evidence.correct_rows, threat)


COMPONENTS = named(
    *(one_step, weak_and_strong, one_step_gap, linearity, more_steps, more_restarts, ascending_steps, still_rising),
    *(broken_stays_broken, targeted, boundary_distortion, radius_curve, unbounded, escalation),
)
