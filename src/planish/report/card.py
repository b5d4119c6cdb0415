"""A robustness card: a model card of the Hugging Face Hub, its metadata in YAML and a short text."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.records.audit import Audit
from planish.records.statistics import Estimate, counts
from planish.report.audited import VERDICTS, sentences
from planish.report.entry import Entry, percent, radius_text
from planish.report.tables import markdown, markdown_text, table

_TASK = {"type": "image-classification", "name": "Image classification"}


@dataclass(frozen=True)
class CardMetric:
    """An accuracy of one model and what it holds for; attack "none" and radius 0 for clean images."""

    model: str
    dataset: str
    attack: str
    norm: str
    radius: float
    estimate: Estimate

    @property
    def title(self) -> str:
        """The metric's name."""
        if self.attack == "none":
            return "Clean accuracy"
        return f"Robust accuracy, {self.norm} radius {radius_text(self.radius)}, after {self.attack}"


def metrics_of(entries: Sequence[Entry]) -> list[CardMetric]:
    """Return the clean and the robust accuracy of each entry."""
    found = []
    for entry in entries:
        record = entry.evaluation
        data = record.dataset or "unknown"
        found.append(CardMetric(entry.name, data, "none", record.norm, 0.0, record.clean_accuracy()))
        if record.columns:
            attacks = " + ".join(record.asked)
            found.append(CardMetric(entry.name, data, attacks, record.norm, record.radius, record.robust_accuracy()))
    return found


def card(entries: Sequence[Entry]) -> str:
    """Return the card of these models."""
    return _card(metrics_of(entries), "Robustness", [])


def audit_card(audit: Audit) -> str:
    """Return the card of an audited model, the audit's verdict in its text."""
    terms = (audit.dataset or "unknown", " + ".join(audit.asked), audit.norm, audit.radius)
    verdict = f"Audit: {VERDICTS[audit.verdict].lower()}."
    remarks = [verdict, *sentences(audit.findings)]
    return _card([CardMetric(audit.name, *terms, audit.robust_accuracy())], f"Robustness of {audit.name}", remarks)


def _card(found: Sequence[CardMetric], title: str, remarks: Sequence[str]) -> str:
    rows = [[(text, None) for text in _texts(metric)] for metric in found]
    caption = "Shares of the images classified correctly, with 95% Wilson intervals."
    headers = ("Model", "Data", "Attack", "Threat", "Images", "Accuracy")
    text = [f"# {markdown_text(title)}", "", *(line for one in remarks for line in (markdown_text(one), ""))]
    text += [markdown(table(caption, headers, rows))]
    text += ["Robust accuracy is an upper bound: it holds for the attack named beside it, at that norm and radius"]
    text += ["(pixels of [0, 1]). A stronger attack may break more. Measured by planish."]
    return "\n".join(["---", yaml(metadata(found)), "---", "", *text]) + "\n"


def _texts(metric: CardMetric) -> list[str]:
    threat = "clean images" if metric.attack == "none" else f"{metric.norm} radius {radius_text(metric.radius)}"
    return [metric.model, metric.dataset, metric.attack, threat, f"{metric.estimate.total:,}", percent(metric.estimate)]


def metadata(found: Sequence[CardMetric]) -> dict[str, Any]:
    """Return a model card's metadata: "model-index" with a result for each model and data set."""
    models = dict.fromkeys(metric.model for metric in found)
    index = [{"name": name, "results": _results([one for one in found if one.model == name])} for name in models]
    tags = ["robustness", "adversarial-robustness"]
    return {"pipeline_tag": "image-classification", "tags": tags, "model-index": index}


def _results(found: Sequence[CardMetric]) -> list[dict[str, Any]]:
    sets = dict.fromkeys(metric.dataset for metric in found)
    return [
        {
            "task": _TASK,
            "dataset": {"name": name, "type": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"},
            "metrics": [_metric(metric) for metric in found if metric.dataset == name],
        }
        for name in sets
    ]


def _metric(metric: CardMetric) -> dict[str, Any]:
    args = {"attack": metric.attack, "norm": metric.norm, "radius": metric.radius, **counts(metric.estimate)}
    return {"type": "accuracy", "name": metric.title, "value": metric.estimate.value, "args": args}


def yaml(document: Mapping[str, Any]) -> str:
    """Write mappings, lists and plain values as block YAML 1.1 and 1.2; every text is double-quoted."""
    return "\n".join(_mapping(document))


def _mapping(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in document.items():
        if isinstance(value, Mapping | list) and value:
            body = _mapping(value) if isinstance(value, Mapping) else _list(value)
            lines += [f"{key}:", *(f"  {line}" for line in body)]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return lines


def _list(values: Sequence[Any]) -> list[str]:
    lines = []
    for value in values:
        first, *rest = _mapping(value) if isinstance(value, Mapping) else [_scalar(value)]
        lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


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
