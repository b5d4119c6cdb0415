"""Does the model say the same when it is new, in another precision, and is what it says under attack a class at all."""

from copy import deepcopy

import torch
from torch import Tensor

from planish.audit.check import Seen, Unknown, check, named, share
from planish.audit.evidence import Evidence, Gradients, gradients_of
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
    ends = evidence.images._replace(x=evidence.judged.x_adv).select(evidence.setup_rows)
    parts = [part._replace(logits=None) for part in (evidence.setup, ends)]
    own = [evidence.gradients(part, margin) for part in parts]
    again = [logits_of(evidence.model, part.x) for part in parts]
    if any((one.logits.argmax(1) != other.argmax(1)).any() for one, other in zip(own, again, strict=True)):
        return Unknown("The model does not answer the same twice.", "See the checks deterministic and evaluation-mode.")
    try:
        wide = Counted(deepcopy(evidence.fresh).double())
        exact = [gradients_of(wide, part._replace(x=part.x.double()), margin) for part in parts]
    except Exception as error:  # whatever such a model does with numbers that are not float32
        return Unknown(f"The model does not run in float64: {type(error).__name__}.", "Nothing is to be done.")
    evidence.model.forwards += wide.forwards
    evidence.model.backwards += wide.backwards
    marked = torch.stack([_apart(*pair) for pair in zip(own, exact, strict=True)]).any(0)
    return share(
        marked,
        len(marked),
        "In float64 {of} have another class or a margin whose gradient points elsewhere, clean or after the suite.",
        "Numbers are so large or so small on the way that float32 loses them: attack the model in float64, and judge "
        "what was found in float32.",
    )


def _apart(own: Gradients, exact: Gradients) -> Tensor:
    """Return which images (n,) have another class in float64, or a gradient, if any, of another direction."""
    one, other = own.gradient.flatten(1).double(), exact.gradient.flatten(1)
    turned = (other != 0).any(1) & (torch.cosine_similarity(one, other, eps=0.0).nan_to_num() < ALIKE)
    return turned | (own.logits.argmax(1) != exact.logits.argmax(1))


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
