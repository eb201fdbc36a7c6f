"""mrcnn data check: every fault of a data set, by file and annotation."""

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from mrcnn_cli.commands.console import Verb, json_option, print_json, results, say, table, typed_path
from mrcnn_cli.commands.data.source import chosen_recipe, recipe_options, source_options, workers_option
from mrcnn_cli.commands.progress import Counter

STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command(
    "check",
    cls=Verb,
    examples=[
        "mrcnn data check data",
        "mrcnn data check data --fix repaired",
        "mrcnn data check --images photos --annotations photos.json --all",
    ],
)
@source_options
@click.option(
    "--fix",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    show_default="nothing is written",
    help="Write repaired annotation files and a dataset.toml into this folder; the images stay where they are.",
)
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Look into the image files too.")
@click.option("--all", "everything", is_flag=True, help="Print every finding, not only the first of each fault.")
@recipe_options("objects that none of its anchors can match are a fault")
@workers_option("look into image files")
@json_option
def command(
    data: Path | None,
    images: tuple[Path, ...],
    annotations: tuple[Path, ...],
    out: Path | None,
    pixels: bool,
    everything: bool,
    recipe: str | None,
    assignments: tuple[str, ...],
    workers: int,
    as_json: bool,
) -> int:
    """Find what is wrong with a data set; exits with 1 if there are errors.

    DATA is a folder that 'mrcnn data prepare' wrote. Errors make training or scores wrong, or stop them; warnings are
    suspicious; notes are worth knowing. With --fix, the exit status is that of the repaired copy.
    """
    from mrcnn_cli.engine.data_check import check, find_source, fix, summary

    source = find_source(data, images, annotations)
    _, config = chosen_recipe(recipe, assignments)
    with Counter("looking at images") as counter:
        report = check(source, config, pixels=pixels, workers=workers, progress=counter.update)
    mended, left = fix(report, out) if out is not None else ({}, report)
    if as_json:
        result = summary(report)
        if out is not None:
            result["fixed"] = {"folder": str(out), "mended": dict(mended), "left": summary(left)}
        print_json(result)
    else:
        _show(report, everything)
        if out is not None:
            _say_fixed(mended, left, out)
    return int(left.counts["error"] > 0)


def _show(report: Any, everything: bool) -> None:
    from mrcnn_cli.data.check.faults import FAULTS

    rows = []
    for name, found in report.by_fault().items():
        severity = FAULTS[name].severity
        remedy = FAULTS[name].remedy or "by hand"
        first = _said(found[0])
        rows.append([Text(severity, STYLES[severity]), name, len(found), remedy, first])
    images = sum(len(table.images) for table in report.tables)
    objects = sum(len(table.split.content["annotations"]) for table in report.tables)
    what = f"{report.source.name}: {', '.join(report.source.splits)}; {images:,} images, {objects:,} annotations"
    if everything:
        for finding in report.findings:
            line = Text(f"{finding.severity:<7} {finding.fault}  {_said(finding)}")
            line.stylize(STYLES[finding.severity], 0, len(finding.severity))
            results.print(line)
    elif rows:
        table(what, ["", "fault", "count", "--fix", "first"], rows)
    say(f"{what if everything or not rows else 'found'}: {_counted(report.counts)}")
    if rows and not everything and any(len(found) > 1 for found in report.by_fault().values()):
        say("every finding: --all, or --json")


def _say_fixed(mended: Any, left: Any, out: Path) -> None:
    for name, count in mended.items():
        say(f"mended   {name}: {count:,}")
    for name, found in left.by_fault().items():
        say(f"left     {name}: {len(found):,} (first: {_said(found[0])})")
    say(f"written  {typed_path(out)}: {_counted(left.counts)}")


def _said(finding: Any) -> str:
    """Where it is and what it is, paths as a person would name them here."""
    return f"{finding.where()}: {finding.words}".replace(f"{Path.cwd()}{os.sep}", "")


def _counted(counts: dict[str, int]) -> str:
    if not any(counts.values()):
        return "no faults"
    return ", ".join(f"{count:,} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
