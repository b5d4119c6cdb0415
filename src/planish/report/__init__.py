"""Tables, figures and self-contained HTML pages from evaluations and audits; model cards."""

from planish.report.card import card
from planish.report.entry import Entry
from planish.report.page import write_audit, write_comparison, write_report
from planish.report.tables import Table, cost_rows, markdown, plain_text, summary_rows
from planish.report.verdict import verdict

__all__ = [
    "Entry",
    "Table",
    "card",
    "cost_rows",
    "markdown",
    "plain_text",
    "summary_rows",
    "verdict",
    "write_audit",
    "write_comparison",
    "write_report",
]
