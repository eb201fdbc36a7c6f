"""mrcnn gradcheck: are the kernels right on this machine?"""

import math

import click
from rich.text import Text

from mrcnn_cli.commands.console import Number, Verb, device_option, json_option, print_json, say, say_error, table


@click.command("gradcheck", cls=Verb, examples=["mrcnn gradcheck", "mrcnn gradcheck roi_align nms --device cuda"])
@click.argument("operators", nargs=-1, metavar="[OP]...")
@device_option
@click.option(
    "--dtype",
    metavar="TYPE",
    show_default="every type that the operator takes",
    help="float64, float32, float16 or bfloat16.",
)
@json_option
def command(operators: tuple[str, ...], device: str, dtype: str | None, as_json: bool) -> int:
    """Check the operators against slow, obvious loops in float64, and their gradients against differences.

    OP is an operator's name; by default all are checked. Exits with 1 if one of them is wrong.
    """
    from mrcnn_cli.engine.kernels import gradcheck
    from mrcnn_cli.engine.run import choose_device

    place = str(choose_device(device))
    rows = gradcheck(operators or None, place, dtype)
    failed = [row for row in rows if not row["passed"]]
    if as_json:
        # JSON knows no infinity: a result of the wrong shape or NaN has no error that could be told.
        print_json([row | {"error": row["error"] if math.isfinite(row["error"]) else None} for row in rows])
    else:
        names = ("op", "case", "check", "dtype")
        shown = [
            (
                _verdict(row["passed"]),
                *(row[name] for name in names),
                Number(f"{row['error']:.1e}"),
                Number(f"{row['tolerance']:.1e}"),
            )
            for row in rows
        ]
        table("", ["", "operator", "input", "check", "type", "error", "allowed"], shown)
    if failed:
        wrong = ", ".join(dict.fromkeys(row["op"] for row in failed))
        say_error(f"{len(failed)} of {len(rows)} checks failed on {place}: {wrong}")
    else:
        say(f"all {len(rows)} checks passed on {place}")
    return int(bool(failed))


def _verdict(passed: bool) -> Text:
    return Text("ok", style="green") if passed else Text("fail", style="red")
