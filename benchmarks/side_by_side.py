"""Times two implementations side by side in one process: the runner behind the bench_<operator>.py files."""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor

Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One piece of work, done by us and by torchvision.

    Args:
        make: gets the device and gives (ours, torchvision's), each a call without arguments.
        tolerance: largest difference between the answers.
    """

    name: str
    make: Callable[[torch.device], tuple[Work, Work]]
    tolerance: float = 0.0


def main(description: str, cases: Iterable[Case]) -> None:
    """The command line of a benchmark: checks that the answers agree, then times, then prints the ratios."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of the CPU, one run each (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each; medians count (default: 5)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--json", action="store_true", help="print the rows with device, versions and date as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for threads in options.threads if device.type == "cpu" else [1]:
        torch.set_num_threads(threads)
        for case in cases:
            if options.only in case.name:
                rows.append(_timed(case, device, options.repeats) | {"threads": threads})
                if not options.json:
                    _show(rows[-1])
    if options.json:
        json.dump({**_stamp(device), "rows": rows}, sys.stdout, indent=2)
        print()


def _timed(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    ours, theirs = case.make(device)
    error = difference(ours(), theirs())
    if not error <= case.tolerance:
        raise SystemExit(f"{case.name}: the answers differ by {error:.3g}, more than {case.tolerance:.3g}: not timed")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):  # in turn, so that a machine that slows down slows both
        for work, of_work in zip((ours, theirs), times, strict=True):
            of_work.append(_milliseconds(work, device))
    mine, other = (statistics.median(values) for values in times)
    return {"case": case.name, "ms": mine, "torchvision_ms": other, "ratio": other / mine, "difference": error}


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two results; infinite where shapes or whole numbers differ."""
    if isinstance(ours, Tensor):
        if ours.shape != theirs.shape:
            return float("inf")
        if not ours.is_floating_point():
            return 0.0 if torch.equal(ours, theirs) else float("inf")
        return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    return max(difference(a, b) for a, b in zip(ours, theirs, strict=True))


def _milliseconds(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began)


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:<48} threads {row['threads']}  ours {row['ms']:9.3f} ms"
        f"  torchvision {row['torchvision_ms']:9.3f} ms  {row['ratio']:6.1f}x  difference {row['difference']:.1e}",
        flush=True,
    )


def _stamp(device: torch.device) -> dict[str, str]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": name or platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
