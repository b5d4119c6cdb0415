"""Papers' tables run again at a stated scale, beside what was printed, with a verdict on each claim."""

from planish.reproduce.estimate import estimate_rows, estimates
from planish.reproduce.measured import document, load_documents, save
from planish.reproduce.pages import list_rows, results_rows, write_page
from planish.reproduce.readings import write_claims
from planish.reproduce.running import Job, Step, chosen_rows, judge, reproduce
from planish.reproduce.tables import table, table_names

__all__ = [
    "Job", "Step", "chosen_rows", "document", "estimate_rows", "estimates", "judge", "list_rows", "load_documents",
    "reproduce", "results_rows", "save", "table", "table_names", "write_claims", "write_page",
]  # fmt: skip
