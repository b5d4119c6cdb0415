"""What the numbers say: the verdict in plain sentences derived from them alone; a model card."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from planish.core.words import number_of
from planish.records.audit import Audit
from planish.records.evaluation import Evaluation
from planish.records.statistics import Estimate, counts, paired_interval
from planish.report import tables
from planish.report.audited import VERDICTS, sentences
from planish.report.tables import Entry, check, epochs_text, markdown_text, percent, threat

OVERESTIMATE = 0.20  # a first attack this far above the last is worth a sentence
CLOSE = 0.90  # a cheaper method with this share of the best accuracy is worth a sentence


def verdict(entries: Sequence[Entry]) -> list[str]:
    """Return sentences, the headline first. BadInput as for a report."""
    check(entries)
    attacked = sorted((entry for entry in entries if entry.evaluation.columns), key=_robust, reverse=True)
    if not attacked:
        told = [_clean_headline(entries)]
    else:
        told = [_headline(attacked), *_lead(attacked), *_cheaper(attacked), *_overestimates(attacked)]
    told += [_alarmed(entry, entry.alarms) for entry in entries if entry.alarms]
    return told + [f"{entry.name}: {warning}" for entry in entries for warning in entry.evaluation.class_warnings()]


def cautions(entries: Sequence[Entry]) -> list[str]:
    """Return what a reader must know of each evaluation before its number: its remarks."""
    return [f"{entry.name}: {remark}" for entry in entries for remark in entry.evaluation.remarks()]


def _robust(entry: Entry) -> float:
    return entry.evaluation.robust_accuracy().value


def _clean_headline(entries: Sequence[Entry]) -> str:
    best = max(entries, key=lambda entry: entry.evaluation.clean_accuracy().value)
    share = f"{percent(best.evaluation.clean_accuracy())} of {best.size:,} clean images"
    return f"No attack was run, so nothing is known about robustness; {best.name} classifies {share} correctly."


def _headline(ranked: Sequence[Entry]) -> str:
    best, last = ranked[0], ranked[-1]
    sentence = f"At {threat(best.evaluation)}, {best.name} keeps {_kept(best)}"
    if last is best:
        return sentence + "."
    kept = percent(last.evaluation.robust_accuracy()) if _terms(best) == _terms(last) else _kept(last)
    return f"{sentence}; {last.name} keeps {kept}."


def _terms(entry: Entry) -> tuple[int, tuple[str, ...]]:
    return entry.size, entry.evaluation.asked


def _kept(entry: Entry) -> str:
    share = percent(entry.evaluation.robust_accuracy())
    return f"{share} of {number_of(entry.size)} after {_listed(entry.evaluation.asked)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def _lead(ranked: Sequence[Entry]) -> list[str]:
    """Compare the best two, image by image, when they were judged alike."""
    if len(ranked) < 2:
        return []
    best, second = ranked[0], ranked[1]
    if not best.evaluation.same_images(second.evaluation) or _terms(best) != _terms(second):
        return [f"{best.name} and {second.name} were not judged on the same images by the same attacks."]
    lead = paired_interval(best.evaluation.survivors(), second.evaluation.survivors())
    points = f"{100 * lead.value:.1f} points [{100 * lead.low:.1f}, {100 * lead.high:.1f}]"
    clear = "" if lead.low > 0 else ": too close to call on this many images"
    return [f"It is ahead of {second.name} by {points}, paired on the same images{clear}."]


def _cheaper(ranked: Sequence[Entry]) -> list[str]:
    """Name the cheapest method that comes close to the best one."""
    best = ranked[0]
    priced = [(entry.cost, entry) for entry in ranked if entry.cost is not None]
    close = [(cost, entry) for cost, entry in priced if _robust(entry) >= CLOSE * _robust(best)]
    if best.cost is None or _robust(best) == 0:
        return []
    cost, entry = min(close, key=lambda pair: pair[0])
    if entry is best:
        return [f"{best.name} was trained for the cost of {epochs_text(best.cost)} epochs of standard training."]
    kept = f"{percent(entry.evaluation.robust_accuracy())} after training for {epochs_text(cost)} standard epochs"
    return [f"{entry.name} keeps {kept}; {best.name} took {epochs_text(best.cost)}."]


def _overestimates(ranked: Sequence[Entry]) -> list[str]:
    sentences = []
    for entry in ranked:
        first = entry.evaluation.names[0]
        early, late = map(entry.evaluation.accuracy_after, (first, entry.evaluation.names[-1]))
        if early.value - late.value >= OVERESTIMATE:
            words = f"Judged by {first} alone, {entry.name} would pass for {percent(early)}"
            sentences.append(f"{words}; the later attacks leave {percent(late)}.")
    return sentences


def _alarmed(entry: Entry, alarms: Sequence[Mapping[str, Any]]) -> str:
    steps = _listed([f"step {alarm['step']:.0f}" for alarm in alarms])
    back = sum(bool(alarm["went_back"]) for alarm in alarms)
    then = "training went back and on with the method strengthened" if back else "its method has nothing to harden"
    return f"The guard saw {entry.name} collapse in training at {steps}; {then}."


_TASK = {"type": "image-classification", "name": "Image classification"}


@dataclass(frozen=True)
class CardMetric:
    """An accuracy of one model and what it holds for; attack "none" and radius 0 for clean images."""

    model: str
    dataset: str
    attack: str
    norm: str
    radius: float
    ball: str
    estimate: Estimate

    @property
    def title(self) -> str:
        """The metric's name."""
        return "Clean accuracy" if self.attack == "none" else f"Robust accuracy, {self.threat}, after {self.attack}"

    @property
    def threat(self) -> str:
        return "clean images" if self.attack == "none" else self.ball

    @property
    def texts(self) -> list[str]:
        """The metric as a row."""
        total = f"{self.estimate.total:,}"
        return [self.model, self.dataset, self.attack, self.threat, total, percent(self.estimate)]

    @property
    def facts(self) -> dict[str, Any]:
        """The metric as a model card's metadata has it."""
        radius = None if math.isnan(self.radius) else self.radius
        args = {"attack": self.attack, "norm": self.norm, "radius": radius, **counts(self.estimate)}
        return {"type": "accuracy", "name": self.title, "value": self.estimate.value, "args": args}


def metrics_of(entries: Sequence[Entry]) -> list[CardMetric]:
    """Return the clean and the robust accuracy of each entry."""
    found = []
    for name, record in ((entry.name, entry.evaluation) for entry in entries):
        measured = [("none", record.norm, 0.0, "", record.clean_accuracy())]
        if record.columns:
            terms = (" + ".join(record.asked), record.norm, record.radius, record.ball)
            measured.append((*terms, record.robust_accuracy()))
        found += [CardMetric(name, record.dataset or "unknown", *terms) for terms in measured]
    return found


def card(entries: Sequence[Entry]) -> str:
    """Return the card of these models."""
    return _card(metrics_of(entries), "Robustness", cautions(entries))


def audit_card(audit: Audit) -> str:
    """Return the card of an audited model, the audit's verdict in its text."""
    return _card(_audit_metrics(audit), f"Robustness of {audit.name}", _audit_remarks(audit))


def model_card(title: str, told: Sequence[str], judged: Sequence[Evaluation | Audit], use: Sequence[str]) -> str:
    """Return the card of one model, for the page of its own repository.

    told: sentences on what it is. judged: what is known of its robustness. use: Markdown lines on how to use it.
    """
    found, remarks = list[CardMetric](), list[str]()
    for record in judged:
        if isinstance(record, Audit):
            found, remarks = found + _audit_metrics(record), remarks + _audit_remarks(record)
        else:
            found, remarks = found + metrics_of([Entry(title, record)]), remarks + record.remarks()
    unknown = [] if found else ["No robustness of this model was measured: audit it before you rely on it."]
    rows = [replace(metric, model=title) for metric in found]
    return _card(rows, title, [*told, *unknown, *remarks], {"library_name": "planish"}, ["", "## Use", "", *use])


def _audit_metrics(audit: Audit) -> list[CardMetric]:
    terms = (audit.dataset or "unknown", " + ".join(audit.asked), audit.norm, audit.radius, audit.ball)
    return [CardMetric(audit.name, *terms, audit.robust_accuracy())]


def _audit_remarks(audit: Audit) -> list[str]:
    verdict = f"Audit: {VERDICTS[audit.verdict].lower()}."
    return [*audit.remarks(), verdict, *sentences(audit.findings)]


def _card(
    found: Sequence[CardMetric],
    title: str,
    remarks: Sequence[str],
    facts: Mapping[str, Any] = MappingProxyType({}),
    ending: Sequence[str] = (),
) -> str:
    rows = [[(text, None) for text in metric.texts] for metric in found]
    caption = "Shares of the images classified correctly, with 95% Wilson intervals."
    headers = ("Model", "Data", "Attack", "Threat", "Images", "Accuracy")
    text = [f"# {markdown_text(title)}", "", *(line for one in remarks for line in (markdown_text(one), ""))]
    if found:
        text += [tables.markdown(tables.table(caption, headers, rows))]
        text += ["Robust accuracy is an upper bound: it holds for the attack named beside it, at that norm and radius"]
        text += ["(pixels of [0, 1]). A stronger attack may break more. Measured by planish."]
    about = yaml({**facts, **metadata(found)})
    return "\n".join(["---", about, "---", "", *text, *ending]) + "\n"


def metadata(found: Sequence[CardMetric]) -> dict[str, Any]:
    """Return a model card's metadata: "model-index" with a result for each model and data set."""
    tags = ["robustness", "adversarial-robustness"]
    own: dict[str, Any] = {"pipeline_tag": "image-classification", "tags": tags}
    models = dict.fromkeys(metric.model for metric in found)
    index = [{"name": name, "results": _results([one for one in found if one.model == name])} for name in models]
    return own | ({"model-index": index} if index else {})


def _results(found: Sequence[CardMetric]) -> list[dict[str, Any]]:
    sets = dict.fromkeys(metric.dataset for metric in found)
    return [
        {
            "task": _TASK,
            "dataset": {"name": name, "type": tables.slug(name, "unknown")},
            "metrics": [metric.facts for metric in found if metric.dataset == name],
        }
        for name in sets
    ]


def yaml(document: Mapping[str, Any]) -> str:
    """Write mappings, lists and plain values as block YAML 1.1 and 1.2; every text is double-quoted."""
    return "\n".join(_block(document))


def _block(value: Any) -> list[str]:
    """Return the lines of a value; those of what it holds are indented."""
    lines = []
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            nested = isinstance(part, Mapping | list) and part
            lines += [f"{key}:", *(f"  {line}" for line in _block(part))] if nested else [f"{key}: {_scalar(part)}"]
    elif isinstance(value, list) and value:
        for first, *rest in map(_block, value):
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines or [_scalar(value)]


def _scalar(value: Any) -> str:
    if isinstance(value, bool | int | None):
        return json.dumps(value)
    if isinstance(value, float):
        text = f"{value:.6f}".rstrip("0")  # never an exponent: YAML 1.1 reads 1e-05 as a text
        return (text + "0" if text.endswith(".") else text) if math.isfinite(value) else "null"
    text = json.dumps(str(value), ensure_ascii=False) if value not in ([], {}) else json.dumps(value)
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]", lambda one: f"\\u{ord(one.group()):04x}", text
    )
