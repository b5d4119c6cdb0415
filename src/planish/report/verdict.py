"""What the numbers say, in plain sentences derived from them and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planish.records.statistics import paired_interval
from planish.report.entry import Entry, check, percent, threat
from planish.report.tables import times

OVERESTIMATE = 0.20  # a first attack this far above the last is worth a sentence
CLOSE = 0.90  # a cheaper method with this share of the best accuracy is worth a sentence


def verdict(entries: Sequence[Entry]) -> list[str]:
    """Return sentences, the headline first. BadInput as for a report."""
    check(entries)
    attacked = sorted(filter(_attacked, entries), key=_robust, reverse=True)
    if not attacked:
        return [_clean_headline(entries), *_alarms(entries), *_class_warnings(entries)]
    sentences = [_headline(attacked), *_lead(attacked), *_cheaper(attacked)]
    return sentences + _overestimates(attacked) + _alarms(entries) + _class_warnings(entries)


def _attacked(entry: Entry) -> bool:
    return bool(entry.evaluation.columns)


def _robust(entry: Entry) -> float:
    return entry.evaluation.robust_accuracy().value


def _clean_headline(entries: Sequence[Entry]) -> str:
    best = max(entries, key=lambda entry: entry.evaluation.clean_accuracy().value)
    share = percent(best.evaluation.clean_accuracy())
    return (
        f"No attack was run, so nothing is known about robustness; {best.name} classifies {share} of "
        f"{best.size:,} clean images correctly."
    )


def _headline(ranked: Sequence[Entry]) -> str:
    best, last = ranked[0], ranked[-1]
    sentence = f"At {threat(best.evaluation)}, {best.name} keeps {_kept(best)}"
    if last is best:
        return sentence + "."
    same = _terms(best) == _terms(last)
    kept = percent(last.evaluation.robust_accuracy()) if same else _kept(last)
    return f"{sentence}; {last.name} keeps {kept}."


def _terms(entry: Entry) -> tuple[int, tuple[str, ...]]:
    return entry.size, entry.evaluation.asked


def _kept(entry: Entry) -> str:
    share = percent(entry.evaluation.robust_accuracy())
    return f"{share} of {entry.size:,} images after {_listed(entry.evaluation.asked)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def _lead(ranked: Sequence[Entry]) -> list[str]:
    """Compare the best two, image by image, when they were judged alike."""
    if len(ranked) < 2:
        return []
    best, second = ranked[0], ranked[1]
    same_images = np.array_equal(best.evaluation.indices, second.evaluation.indices)
    if not same_images or _terms(best) != _terms(second):
        return [f"{best.name} and {second.name} were not judged on the same images by the same attacks."]
    lead = paired_interval(best.evaluation.survivors(), second.evaluation.survivors())
    points = f"{100 * lead.value:.1f} points [{100 * lead.low:.1f}, {100 * lead.high:.1f}]"
    clear = "" if lead.low > 0 else ": too close to call on this many images"
    return [f"It is ahead of {second.name} by {points}, paired on the same images{clear}."]


def _cheaper(ranked: Sequence[Entry]) -> list[str]:
    """Name the cheapest method that comes close to the best one."""
    best = ranked[0]
    priced = [(entry.passes, entry) for entry in ranked if entry.passes is not None]
    close = [(passes, entry) for passes, entry in priced if _robust(entry) >= CLOSE * _robust(best)]
    if best.passes is None or _robust(best) == 0:
        return []
    passes, entry = min(close, key=lambda pair: pair[0])
    if entry is best:
        return [f"{best.name} trained with {times(best.passes)} the passes of standard training."]
    kept = percent(entry.evaluation.robust_accuracy())
    return [
        f"{entry.name} keeps {kept} for {times(passes)} the passes of standard training; "
        f"{best.name} took {times(best.passes)}."
    ]


def _overestimates(ranked: Sequence[Entry]) -> list[str]:
    sentences = []
    for entry in ranked:
        names = entry.evaluation.names
        first, last = (entry.evaluation.accuracy_after(name) for name in (names[0], names[-1]))
        if first.value - last.value >= OVERESTIMATE:
            sentences.append(
                f"Judged by {names[0]} alone, {entry.name} would pass for {percent(first)}; "
                f"the later attacks leave {percent(last)}."
            )
    return sentences


def _alarms(entries: Sequence[Entry]) -> list[str]:
    return [_alarmed(entry, entry.alarms) for entry in entries if entry.alarms]


def _alarmed(entry: Entry, alarms: Sequence[Mapping[str, Any]]) -> str:
    steps = _listed([f"step {alarm['step']:.0f}" for alarm in alarms])
    back = sum(bool(alarm["went_back"]) for alarm in alarms)
    then = "training went back and on with the method strengthened" if back else "its method has nothing to harden"
    return f"The guard saw {entry.name} collapse in training at {steps}; {then}."


def _class_warnings(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.name}: {warning}" for entry in entries for warning in entry.evaluation.class_warnings()]
