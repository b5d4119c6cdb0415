"""Which rows of a batch are a process's own where several train together, and the noise of these rows alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.core.errors import BadInput
from planish.core.words import number_of


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: parts follow each other and differ by a row at most.

    number: from 0 to of - 1. of: how many processes there are.
    """

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> slice:
        """Return which of so many rows are its own. Raises BadInput if there are fewer rows than processes."""
        if count < self.of:
            raise BadInput(
                f"a batch of {number_of(count)} cannot be shared by {self.of} processes: set settings.batch_size to "
                f"{self.of} or more, or start fewer processes"
            )
        part, more = divmod(count, self.of)
        first = self.number * part + min(self.number, more)
        return slice(first, first + part + (self.number < more))

    def count(self, count: int) -> int:
        """Return how many of so many rows are its own."""
        rows = self.rows(count)
        return int(rows.stop - rows.start)


WHOLE = Share()
"""All rows: of the only process."""


class OwnRows(torch.Generator):
    """A generator of the numbers for a whole batch, of which `randomness.uniform` keeps the rows of one share.

    Every process draws the same, so an image's noise does not depend on how many processes there are.
    """

    rows: slice
    whole: int

    @classmethod
    def of(cls, generator: torch.Generator, share: Share, whole: int) -> "OwnRows":
        """Return it for a share of so many rows; it draws what the generator would draw from here on."""
        own = cls(generator.device)
        own.set_state(generator.get_state())
        own.rows, own.whole = share.rows(whole), whole
        return own

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the own rows of uniform numbers for the whole batch; shape: of the own ones, some may be missing."""
        drawn = torch.rand(self.whole, *shape[1:], generator=self, device=self.device, dtype=dtype)
        return drawn[self.rows][: shape[0]].clone()
