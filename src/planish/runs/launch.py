"""Starts planish in several processes of this machine, and again when one of them dies."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from planish.storage.files import scratch

WRONG, HOPELESS, INTERRUPTED = 2, 3, 130
"""Exit codes of a process that need not be started again: wrong input, a loss that is not finite, Ctrl-C."""


def launch(arguments: Sequence[str], processes: int, restarts: int, tell: Callable[[str], None]) -> int:
    """Run planish with these arguments in so many processes of this machine, and return the exit code.

    When one dies, all are started again and go on from where the run was last saved, `restarts` times at most; not
    after wrong input, a loss that is not finite, or Ctrl-C, which end the run. tell: is told of each such start.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their words are for their developers
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for left in range(restarts, -1, -1):
        try:
            with scratch() as folder:
                elastic_launch(_on_this_machine(processes, folder), sys.executable)("-m", "planish", *arguments)
            return 0
        except SignalException as error:
            return INTERRUPTED if error.sigval == signal.SIGINT else 128 + error.sigval
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
            if final := {WRONG, HOPELESS, INTERRUPTED} & {*codes}:
                return 1 if HOPELESS in final else min(final)
            told = _words(error)
            tell(f"{told}; all start again where the run was last saved" if left else f"{told}, once too often")
        arguments = [*(each for each in arguments if each not in ("--resume", "--overwrite")), "--resume"]
    return 1


def _on_this_machine(processes: int, folder: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        run_id=uuid4().hex,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        max_restarts=0,  # elastic's own would start again after wrong input too
    )


def _words(error: ChildFailedError) -> str:
    """Word which process died of what: by a signal, if one did; others then fail, or are ended, as they miss it."""
    codes = {number: failure.exitcode for number, failure in error.failures.items()}
    number = min(codes, key=lambda each: (codes[each] > 0, codes[each] == -signal.SIGTERM))
    if codes[number] < 0:
        return f"process {number} was ended by {signal.Signals(-codes[number]).name}"
    return f"process {number} failed (exit code {codes[number]})"
