"""Does the model say the same when it is new, in another precision, and is what it says under attack a class at all."""

from copy import deepcopy

import torch
from torch import Tensor

from planish.audit.check import Seen, Unknown, check, named, share
from planish.audit.evidence import Evidence, gradients_of
from planish.core.arguments import logits_of
from planish.core.losses import margin
from planish.core.modes import Counted
from planish.core.randomness import reproducible

ALIKE = 0.9
"""Cosine of gradients in float32 and float64, below which rounding has made another one of them."""


@check((36,), fail_at=0.0)
def memory(evidence: Evidence) -> Seen | Unknown:
    """A copy of the model that has seen nothing yet says the same, asked in another order."""
    if evidence.fresh is None:
        return Unknown("The model cannot be copied.", "Give a model that copy.deepcopy copies, and audit again.")
    rows, fresh = evidence.setup_rows.flip(0), Counted(deepcopy(evidence.fresh))
    batch, x_adv = evidence.images.select(rows), evidence.judged.x_adv[rows]
    answers = []
    for model in (fresh, evidence.model):
        with reproducible(evidence.seed):
            answers.append([logits_of(model, x) for x in (x_adv, batch.x)])
    evidence.model.forwards += fresh.forwards
    (new_adv, new), (old_adv, old) = answers
    changed = (new_adv.argmax(1) != old_adv.argmax(1)) | (new.argmax(1) != old.argmax(1))
    wrong = ~(margin(new_adv, batch.labels) < 0) & evidence.correct[rows] & changed
    evidence.broken["memory"] = torch.zeros_like(evidence.correct).index_put((rows,), wrong)
    return share(
        changed,
        len(rows),
        "A fresh copy of the model puts {of}, clean or as the suite left them, into another class than the model that "
        "has been attacked.",
        "The model remembers images or counts its calls, and answers attacks by that; judge a fresh copy on images "
        "that were made on another one.",
        broken=int(wrong.sum()),
    )


@check((37,), warn_at=0.0, fail_at=2.0, needs="graph")
def precision(evidence: Evidence) -> Seen | Unknown:
    """The same weights in float64 say the same, and their gradients point the same way."""
    if evidence.arithmetic != torch.float32:
        kind = str(evidence.arithmetic).removeprefix("torch.")
        return Unknown(f"The model computes in {kind}, not in float32.", "Nothing is to be done.")
    if evidence.fresh is None:
        return Unknown("The model cannot be copied.", "Give a model that copy.deepcopy copies, and audit again.")
    marked = torch.zeros_like(evidence.setup.labels, dtype=torch.bool)
    try:
        wide = Counted(deepcopy(evidence.fresh).double())
        for x in (evidence.setup.x, evidence.judged.x_adv[evidence.setup_rows]):
            batch = evidence.setup._replace(x=x, logits=None)
            exact, own = gradients_of(wide, batch._replace(x=x.double()), margin), evidence.gradients(batch, margin)
            marked |= (exact.logits.argmax(1) != own.logits.argmax(1)) | _apart(own.gradient, exact.gradient)
    except Exception as error:
        return Unknown(f"The model does not run in float64: {type(error).__name__}.", "Nothing is to be done.")
    evidence.model.forwards, evidence.model.backwards = evidence.passes + wide.forwards, wide.backwards
    return share(
        marked,
        len(marked),
        "In float64 {of} have another class or a margin whose gradient points elsewhere, clean or after the suite.",
        "Numbers are so large or so small on the way that float32 loses them: attack the model in float64, and judge "
        "what was found in float32.",
    )


def _apart(own: Tensor, exact: Tensor) -> Tensor:
    """Return which gradients (n,) have another direction in float64, where they have one at all."""
    cosine = torch.cosine_similarity(own.flatten(1).double(), exact.flatten(1), eps=0.0).nan_to_num()
    return (exact.flatten(1) != 0).any(1) & (cosine < ALIKE)


@check((38,), warn_at=50.0, classes=3, correct="any")
def abstention(evidence: Evidence) -> Seen | Unknown:
    """Attacks do not drive images into one class that is neither a label nor predicted on a clean image."""
    known = torch.unique(torch.cat([evidence.images.labels, evidence.logits.argmax(1)]))
    broken = evidence.suite_broken
    if 2 * len(known) < evidence.classes:
        reason = (
            f"The images are of {len(known)} of {evidence.classes} classes, so that a class can be absent by chance."
        )
        return Unknown(reason, "Audit on images of more classes.")
    if not broken.any():
        return Unknown("The suite broke no image.", "Nothing is to be done.")
    predicted = logits_of(evidence.model, evidence.judged.x_adv[broken]).argmax(1)
    counts = predicted.bincount(minlength=evidence.classes).index_fill(0, known, 0)
    hits, target = int(counts.amax()), int(counts.argmax())
    where = f"class {target}, which no clean image has" if hits else "a class that no clean image has"
    return share(
        hits,
        len(predicted),
        f"Of those that the suite broke {{of}} are put into {where}.",
        "The model abstains under attack, and an abstention counts as wrong here: give the accuracy with and without "
        "that class, and attack the detector and the classifier together.",
        target=target,
    )


COMPONENTS = named(memory, precision, abstention)
