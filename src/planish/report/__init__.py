"""Tables, figures and self-contained HTML pages from evaluations and audits; model cards."""

from typing import TYPE_CHECKING

from planish.registry import lazy

if TYPE_CHECKING:
    from planish.report.cards import card as card, model_card as model_card, verdict as verdict
    from planish.report.page import (
        write_audit as write_audit,
        write_comparison as write_comparison,
        write_report as write_report,
    )
    from planish.report.tables import (
        Entry as Entry,
        Table as Table,
        cost_rows as cost_rows,
        markdown as markdown,
        plain_text as plain_text,
        summary_rows as summary_rows,
    )

__getattr__, __dir__, __all__ = lazy(__name__)  # what draws imports matplotlib, a third of a second
