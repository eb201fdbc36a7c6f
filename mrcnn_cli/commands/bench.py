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
    examples=["mrcnn bench kernels", "mrcnn bench kernels roi_align --device cuda --out results.json"],
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
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="nothing is written",
    help="Write the times with device, versions and date into this JSON file.",
)
@json_option
def kernels(operators: tuple[str, ...], device: str, threads: int | None, out: Path | None, as_json: bool) -> None:
    """Time the operators beside plain PyTorch and, where it is installed, torchvision; answers are compared first.

    OP is an operator's name; by default all are timed. Times are medians, in milliseconds.
    """
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.kernels import bench
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.run import choose_device, environment

    keep_freed_memory()
    place = choose_device(device)
    if out is not None:
        make_folder(out.parent)  # before the work, not after it
    rows = []
    with Activity("timing") as activity:
        for row in bench(operators or None, device, threads):
            rows.append(row)
            activity.say(f"timed {row['op']}, {row['case']}")
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(place).splitlines(),
        "rows": rows,
    }
    if out is not None:
        write_bytes(out, (json.dumps(report, indent=2) + "\n").encode())
    if as_json:
        print_json(report)
    else:
        _show(rows)
    if out is not None:
        say(f"written  {out}")


def _show(rows: list[dict[str, Any]]) -> None:
    """A line for each case: our time, then each peer's and how many times ours it is."""
    peers = list(dict.fromkeys(key.removesuffix("_ratio") for row in rows for key in row if key.endswith("_ratio")))
    columns = ["operator", "input", "ours, ms"]
    for peer in peers:
        columns += [f"{peer}, ms", "ratio"]
    shown = []
    for row in rows:
        cells = [row["op"], row["case"], row["ms"]]
        for peer in peers:
            ratio = row.get(f"{peer}_ratio")
            cells += [row.get(f"{peer}_ms"), None if ratio is None else Number(f"{ratio:.1f}x")]
        shown.append(cells)
    if rows:
        table(f"{rows[0]['device']}, {rows[0]['threads']} threads", columns, shown)
