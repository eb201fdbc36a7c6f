"""What more threads bring each operator: the same call on one thread and on several, taking turns, on an idle machine.

    python benchmarks/bench_threads.py --threads 2 --json benchmarks/results/threads-<machine>.json

The machine's own copy and matrix product stand beside them: what is bound by memory cannot gain more than the copy.
Whatever takes less than 5 ms on one thread is left out: there the start of the threads decides.
"""

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mrcnn_cli.engine.kernels import OPERATORS
from mrcnn_cli.engine.memory import keep_freed_memory
from mrcnn_cli.engine.run import environment

SHORTEST_MS = 5.0

Work = Callable[[], Any]


def works(operators: list[str]) -> Iterator[tuple[str, str, Work]]:
    """Operator, case and what is timed; the machine's limits first."""
    source, left = torch.ones(128 << 18), torch.randn(1024, 1024)
    target = torch.empty_like(source)
    yield "(machine)", "copy of 128 MiB", lambda: target.copy_(source)
    yield "(machine)", "product of two 1024 x 1024 matrices", lambda: torch.mm(left, left)
    for name in operators or OPERATORS:
        races = OPERATORS[name].races
        for race in races(torch.device("cpu")) if races else ():
            yield name, race.case, race.ours


def gain(work: Work, threads: int, seconds: float) -> dict[str, float] | None:
    """Medians in milliseconds on one thread and on `threads`; None: too short to tell."""
    for count in (threads, 1):
        first = _shorter_of_two(work, count)
    if first < SHORTEST_MS:
        return None
    times: dict[int, list[float]] = {1: [], threads: []}
    began = time.perf_counter()
    while len(times[1]) < 5 or time.perf_counter() - began < seconds:
        for count, kept in times.items():
            kept.append(_shorter_of_two(work, count))
    one, many = statistics.median(times[1]), statistics.median(times[threads])
    return {"one_thread_ms": one, "ms": many, "gain": one / many}


def _shorter_of_two(work: Work, threads: int) -> float:
    """Milliseconds; the first call after a change of the number wakes the threads."""
    torch.set_num_threads(threads)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", help="their names; by default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    keep_freed_memory()
    rows = []
    for op, case, work in works(arguments.operators):
        timed = gain(work, arguments.threads, arguments.seconds)
        if timed is None:
            continue
        rows.append({"op": op, "case": case, **timed})
        print(f"{op:28} {case:58} {timed['one_thread_ms']:8.1f} {timed['ms']:8.1f}  {timed['gain']:.2f}x", flush=True)
    if arguments.json is not None:
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment(torch.device("cpu")).splitlines(),
            "threads": arguments.threads,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
