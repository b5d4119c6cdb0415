"""Tables, figures and one self-contained HTML page from evaluations."""

from planish.report.entry import Entry
from planish.report.page import write_report
from planish.report.tables import Table, cost_rows, markdown, plain_text, summary_rows
from planish.report.verdict import verdict

__all__ = ["Entry", "Table", "cost_rows", "markdown", "plain_text", "summary_rows", "verdict", "write_report"]
