"""The five pieces of `gpu.py`, in the order of their worth; each is measured by a process of its own."""

from typing import NamedTuple


class Piece(NamedTuple):
    """What is asked, the module here that measures it, and the seconds that it may take; None = what is left."""

    title: str
    seconds: float | None


PIECES = {
    "works": Piece("Does everything work there, and agree with the CPU?", 60),
    "speedrun": Piece("The robust speedrun", 200),
    "steps": Piece("What a training step costs", 120),
    "judging": Piece("What judging costs", 120),
    "papers": Piece("Rows of SEAT's Table 1", None),
}
