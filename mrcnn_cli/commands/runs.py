"""mrcnn runs: what was trained here, and how well."""

from pathlib import Path

import click
from rich.text import Text

from mrcnn_cli.commands.console import Verb, json_option, print_json, say, shown_path, table

COLOURS = {"running": "cyan", "done": "green", "interrupted": "yellow", "broken": "red"}


@click.command("runs", cls=Verb, examples=["mrcnn runs", "mrcnn runs experiments/", "mrcnn runs --json"])
@click.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", default=Path("runs"))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """List runs with their recipes, steps and best scores, the newest first.

    DIR is searched with all folders below it; without it, runs/.
    """
    from mrcnn_cli.engine.runs import SCORES, list_runs

    runs = list_runs(folder)
    if as_json:
        print_json(
            [
                {
                    "run": str(run.folder),
                    "recipe": run.recipe,
                    "state": run.state,
                    "step": run.step,
                    "steps": run.steps,
                    "scores": run.scores,
                    "changed": run.changed.isoformat(timespec="seconds"),
                    "megabytes": run.megabytes,
                }
                for run in runs
            ]
        )
        return
    if not runs:
        say(f"{shown_path(folder)}: no runs; 'mrcnn train' makes one")
        return
    names = [name for name in SCORES if any(name in run.scores for run in runs)]
    rows = [
        [
            shown_path(run.folder),
            Text(run.state, style=COLOURS[run.state]),
            f"{run.step:,}/{run.steps:,}" if run.steps is not None else f"{run.step:,}",
            *(run.scores.get(name) for name in names),
            run.recipe,
            f"{run.changed:%Y-%m-%d %H:%M}",
            f"{run.megabytes:,.0f} MB",
        ]
        for run in runs
    ]
    columns = [name.replace("_", " ").replace("ap", "AP").replace("pq", "PQ") for name in names]
    table("", ["run", "state", "steps", *columns, "model", "last written", "size"], rows)
