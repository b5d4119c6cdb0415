"""`planish merge`: the folders of all shards made one."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Argument

from planish.cli import options, terminal
from planish.cli.pages import show_distances, write_page

OF_A_SHARD = ("--shard", "--after", "--out", "-o")
"""Options with a value that the command of the whole work does not take from that of a shard."""
FLAGS = ("--resume", "--overwrite", "--json")


def merge(
    folders: Annotated[list[Path], Argument(help="Folders of all shards, as --shard NUMBER/OF wrote them.")],
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    json_: options.Json = False,
    csv: options.Csv = None,
) -> None:
    """Join the shards of an evaluation, or of distances, into the record that one process would have written."""
    from planish.records.distances import Distances
    from planish.runs.merge import kind_of, record_in
    from planish.runs.merge import merge as join
    from planish.runs.places import at_work

    where = terminal.Where(out, False, overwrite)
    name = str(record_in(folders[0]).meta.get("model", {}).get("name") or "model")
    with at_work(lambda _: iter(()), out, where.own(kind_of(folders), name)) as (folder, _):
        found = join(folders, folder, overwrite)
        if isinstance(found, Distances):
            return show_distances(found, folder, name, json_, csv)
        write_page([folder], folder, f"Robustness of {name}", json_, csv)
    if "left" in found.meta and not json_:
        terminal.print_line(f"left: {', '.join(found.meta['left'])}")
        terminal.print_line(f"next: {resumed(found.meta['command'], folder)}")


def resumed(command: str, folder: Path) -> str:
    """Return the command that goes on in the folder of the whole work, from that of a shard."""
    return shlex.join([*_of_the_work(shlex.split(command)), "--out", str(folder), "--resume"])


def _of_the_work(words: list[str]) -> Iterator[str]:
    """Yield the words of a command without what is a shard's own."""
    rest = iter(words)
    for word in rest:
        if word in OF_A_SHARD:
            next(rest, None)
        elif word not in FLAGS and not re.match(f"({'|'.join(OF_A_SHARD[:3])})=", word):
            yield word
