"""mrcnn bench: how fast is it on this machine?"""

import datetime
import json
from pathlib import Path
from typing import Any

import click

from mrcnn_cli.commands.console import Number, Verb, Verbs, device_option, json_option, print_json, say, table
from mrcnn_cli.commands.progress import Activity

command = Verbs("bench", help="Measure how fast it is on this machine.", examples=["mrcnn bench kernels"])


@command.command(
    "kernels",
    cls=Verb,
    examples=[
        "mrcnn bench kernels",
        "mrcnn bench kernels roi_align nms --threads 1 --against torchvision --plot kernels.png",
        "mrcnn bench kernels --device cuda --out results.json",
    ],
)
@click.argument("operators", nargs=-1, metavar="[OP]...")
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    show_default="as many as PyTorch takes",
    help="Threads on the CPU.",
)
@click.option(
    "--against",
    type=click.Choice(["torchvision", "plain"]),
    show_default="all there are",
    help="The one peer to time: torchvision, or PyTorch's own operators.",
)
@click.option(
    "--allocator/--no-allocator",
    "both_allocators",
    default=True,
    show_default=True,
    help="On the CPU, also give the ratios in a process whose memory allocator is left as PyTorch has it.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="nothing is written",
    help="Write the times with device, versions and date into this JSON file.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="no picture",
    help="Draw the ratios as bars into this picture (.png).",
)
@json_option
def kernels(
    operators: tuple[str, ...],
    device: str,
    threads: int | None,
    against: str | None,
    both_allocators: bool,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time the operators beside plain PyTorch and, where it is installed, torchvision; answers are compared first.

    OP is an operator's name; by default all are timed, in about seven minutes on a CPU. Times are medians, in
    milliseconds; a ratio is the peer's time by ours; the spread lies between the tenths of our times at both ends.
    """
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.kernels import bench
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.run import choose_device, environment
    from mrcnn_cli.views.bars import ratio_bars

    keep_freed_memory()
    place = choose_device(device)
    for path in filter(None, (out, plot)):
        make_folder(path.parent)  # before the work, not after it
    rows = []
    with Activity("timing") as activity:
        both = both_allocators and place.type == "cpu"
        for row in bench(operators or None, device, threads, against=against, fresh_process=both):
            rows.append(row)
            activity.say(f"timed {row['op']}, {row['case']}")
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(place).splitlines(),
        "rows": rows,
    }
    if out is not None:
        write_bytes(out, (json.dumps(report, indent=2) + "\n").encode())
    if plot is not None:
        ratio_bars(rows, plot)
    if as_json:
        print_json(report)
    else:
        _show(rows)
    for path in filter(None, (out, plot)):
        say(f"written  {path}")


def _show(rows: list[dict[str, Any]]) -> None:
    """A line for each case: our time, then each peer's and how many times ours it is."""
    if not rows:
        say("nothing was timed: none of these operators has such a peer here")
        return
    peers = list(dict.fromkeys(key.removesuffix("_ratio") for row in rows for key in row if key.endswith("_ratio")))
    fresh = any(key.endswith("_ratio_fresh") for row in rows for key in row)
    columns = ["operator", "input", "ours, ms", "spread"]
    for peer in peers:
        columns += [f"{peer}, ms", "ratio"] + (["fresh"] if fresh else [])
    columns += ["GB/s", "of copy", "of peak"]
    shown = []
    for row in rows:
        spread = (row["ms_high"] - row["ms_low"]) / row["ms"]
        cells = [row["op"], row["case"], row["ms"], Number(f"{spread:.0%}")]
        for peer in peers:
            keys = [f"{peer}_ratio"] + ([f"{peer}_ratio_fresh"] if fresh else [])
            cells += [row.get(f"{peer}_ms"), *(_number(row.get(key), "{:.1f}x") for key in keys)]
        cells.append(_number(row.get("gigabytes_per_second"), "{:.1f}"))
        cells += [_number(row.get(key), "{:.0%}") for key in ("share_of_copy", "share_of_peak")]
        shown.append(cells)
    title = f"{rows[0]['device']}, {rows[0]['threads']} threads"
    if fresh:
        title += "; fresh: the ratio in a process with PyTorch's own allocator"
    table(title, columns, shown)


def _number(value: float | None, form: str) -> Number | None:
    return None if value is None else Number(form.format(value))
