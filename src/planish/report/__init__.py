"""Tables, figures and self-contained HTML pages from evaluations and audits; model cards."""

from planish.report.card import card, model_card, verdict
from planish.report.page import write_audit, write_comparison, write_report
from planish.report.tables import Entry, Table, cost_rows, markdown, plain_text, summary_rows

__all__ = [
    "Entry",
    "Table",
    "card",
    "cost_rows",
    "markdown",
    "model_card",
    "plain_text",
    "summary_rows",
    "verdict",
    "write_audit",
    "write_comparison",
    "write_report",
]
