"""`planish evaluate --corruptions`: common corruptions beside the attacks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from planish.cli import terminal
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.cli.shards import AskedWorkers
    from planish.runs.corruptions import CommonCorruptions
    from planish.runs.judge import LoadedModel

Folder = Annotated[
    Path | None, Option("--corruptions", help="Folder of CIFAR-10-C or ImageNet-C: how the model does on these too.")
]
Baseline = Annotated[
    Path | None,
    Option("--corruption-baseline", help="Errors to divide by, as mCE does: {corruption: error} as .json or .toml."),
]


def asked(folder: Path | None, baseline: Path | None, where: terminal.Where) -> "CommonCorruptions | None":
    """Return the corrupted images that are asked for, None = none are. Raises BadInput before any work is begun."""
    if folder is None:
        if baseline is not None:
            raise BadInput("--corruption-baseline is for --corruptions FOLDER, which is not given")
        return None
    if where.shard is not None:
        raise BadInput("--corruptions belongs to a whole evaluation: leave --shard out, or evaluate the merged folder")
    from planish.runs.corruptions import CommonCorruptions

    return CommonCorruptions.found(folder, baseline)


def measure(
    judged: "LoadedModel",
    common: "CommonCorruptions | None",
    folder: Path,
    where: terminal.Where,
    given: "AskedWorkers",
) -> None:
    """Classify corrupted images into an evaluation's folder, if any are asked for, a bar showing how far it is."""
    if common is None:
        return
    from planish.core.footprint import at_a_time
    from planish.runs.corruptions import measure_into

    with at_a_time(where.batch_size), terminal.progress_bars(where.quiet) as bars:
        bar = bars.add_task("corruptions", total=len(common.names), note="")
        for record in measure_into(judged, given.task, folder, common, given.device):
            error = 100 * record.error(record.names[-1])
            bars.update(bar, advance=1, note=f"{record.names[-1]}: error {error:.1f} %")
