"""Is a measured robustness real? Checks that look for reasons why not, and measures of the geometry behind it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail", "open"]
"""open: the check could not be made, for want of budget, classes or gradients; it says why."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    check: its registered name. verdict: pass, warn, fail, or open where it could not be made. statistic: the number
    that was judged (None where open), unit: of it ("%", "", ...). warn_at, fail_at: the thresholds it was held against, None = there is none. evidence: JSON-able
    numbers and per-image lists behind it. meaning: one sentence on what it says about this model. advice: one sentence
    on what to do next; "" where nothing is to be done. passes: forwards and backwards of single images spent.
    """

    check: str
    verdict: Verdict
    statistic: float | None
    unit: str
    warn_at: float | None
    fail_at: float | None
    meaning: str
    advice: str
    evidence: dict[str, Any] = field(default_factory=dict)
    passes: int = 0
