"""Several processes on this machine, started and looked after by PyTorch's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mrcnn_cli.engine.files import read_rows

STOP_SECONDS = 300  # that the processes have to end the step and to save, when they are asked to stop
INTERRUPTED = 130


def launch(
    arguments: Sequence[str], processes: int, say: Callable[[str], None], restarts: int = 0, run: Path | None = None
) -> int:
    """Runs `mrcnn` with these arguments in so many processes; the exit status.

    Args:
        arguments: a command line that joins the others (`engine.distributed.joined`).
        processes: how many.
        say: shows a person a line on what happened to a process that could not say it itself.
        restarts: how often all are started again when one fails.
        run: the folder of the run that they train.
    """
    logging.disable(logging.CRITICAL)  # what a process ends with is said by itself, or below
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // processes, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_SECONDS))
    with tempfile.TemporaryDirectory(prefix="mrcnn-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a port that is free
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mrcnn_cli", *arguments)
        except ChildFailedError as error:
            for rank, failure in sorted(error.failures.items()):
                if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                    hint = " (as the system does where memory runs out)" if failure.exitcode == -signal.SIGKILL else ""
                    rows = read_rows(run / "metrics.jsonl") if run is not None else []
                    after = "" if run is None else f" after step {max((row['step'] for row in rows), default=0)}"
                    say(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}{after}{hint}")
            codes = {failure.exitcode for failure in error.failures.values()}
            return INTERRUPTED if codes == {INTERRUPTED} else 1
        except SignalException as stopped:
            return INTERRUPTED if stopped.sigval == signal.SIGINT else 128 + stopped.sigval
    return 0
