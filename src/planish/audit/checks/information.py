"""What a reader must know beside the verdicts. These never accuse."""

import torch

from planish.audit.check import Seen, Unknown, check, count_text, fact
from planish.audit.evidence import Evidence
from planish.core.losses import margin
from planish.records.statistics import Estimate

CHUNK = 256
COMPARED = 1000


@check((33,), unit="points")
def sample_size(evidence: Evidence) -> Seen:
    """How far the number of images lets the accuracy be off."""
    share = Estimate.of(evidence.suite_robust.cpu().numpy())
    half = 50 * (share.high - share.low)
    few = "; 1,000 or more, drawn at random, are usual" if share.total < 1000 else ""
    return fact(half, f"{share.total} images leave the suite's accuracy uncertain by {half:.1f} points{few}.")


@check((34,))
def radius_and_classes(evidence: Evidence) -> Seen | Unknown:
    """How many images have one of another class within twice the radius."""
    some = evidence.images.select(evidence.drawn(evidence.every, COMPARED))
    if bool((some.labels == some.labels[0]).all()):
        return Unknown("All images are of one class.", "Audit images of several classes.")
    nearest = []
    for x, label in zip(some.x, some.labels, strict=True):
        others = some.x[some.labels != label]
        nearest.append(min(evidence.threat.norm(part - x).amin() for part in torch.split(others, CHUNK)))
    near = int((torch.stack(nearest) < 2 * evidence.threat.radius).sum())
    least = float(torch.stack(nearest).amin())
    return fact(
        100 * near / len(nearest),
        f"{count_text(near, len(nearest))} have an image of another class within twice the radius; the nearest is "
        f"{least:.3g} away: where balls overlap nobody can be right in both.",
        least_distance=least,
    )


@check((35,))
def clean_accuracy(evidence: Evidence) -> Seen:
    """Clean accuracy, and classes that are predicted but never the label."""
    labels, predicted = evidence.images.labels, evidence.logits.argmax(1)
    right = int(evidence.correct.sum())
    absent = ~torch.isin(predicted, labels)
    tied = int((margin(evidence.logits, labels) == 0).sum())
    return fact(
        100 * right / len(labels),
        f"{count_text(right, len(labels))} are right when clean; {int(absent.sum())} are put into classes that no "
        f"image has, and {tied} are ties; both count as wrong, as an abstention would.",
        absent_classes=int(absent.sum()),
        ties=tied,
    )


COMPONENTS = {"sample-size": sample_size, "radius-and-classes": radius_and_classes, "clean-accuracy": clean_accuracy}
