"""mrcnn predict: what a trained model finds in pictures."""

from collections import Counter as Tally
from pathlib import Path
from typing import NamedTuple

import click

from mrcnn_cli.commands.console import (
    Verb,
    device_option,
    json_option,
    print_json,
    say,
    say_error,
    set_option,
    shown_path,
    table,
)
from mrcnn_cli.commands.progress import Counter
from mrcnn_cli.errors import UserError

LISTED_IMAGES = 20  # more would push the summary off the screen


class Row(NamedTuple):
    """A picture that is done, and how many objects of each class it holds."""

    file: Path
    overlay: Path
    counts: Tally[str]


@click.command(
    "predict",
    cls=Verb,
    examples=["mrcnn predict images/", "mrcnn predict 'scans/*.png' --weights runs/longer --out found --score 0.7"],
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "--weights",
    metavar="RUN|FILE",
    show_default="the newest run",
    help="A run, for its best weights, a checkpoint, or a file of another system.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("predictions"),
    help="Folder of the pictures and of predictions.json, a COCO results list; of panoptic.json and PNG files too.",
)
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    metavar="SCORE",
    show_default="the recipe's predict.score_threshold",
    help="Leave out what is less certain.",
)
@click.option(
    "--proposals",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="the model finds its own",
    help="Proposals for the pictures, found by their names; for Fast R-CNN.",
)
@set_option("predict.score_threshold=0.7")
@device_option
@json_option
def command(
    images: tuple[str, ...],
    weights: str | None,
    out: Path,
    score: float | None,
    proposals: Path | None,
    assignments: tuple[str, ...],
    device: str,
    as_json: bool,
) -> int:
    """Find objects in pictures and draw them.

    IMAGES are files, folders (with what is below them) and patterns such as 'scans/*.png'.
    """
    from mrcnn_cli.engine.checkpoint import load
    from mrcnn_cli.engine.foreign.proposals import read_any_proposals
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.predict import find_images, predict_files
    from mrcnn_cli.engine.run import choose_device, latest_run

    keep_freed_memory()
    files = find_images(images)
    checkpoint = load(weights or latest_run(), choose_device(device), assignments)
    newest = "" if weights else " of the newest run"
    classes = f"{len(checkpoint.classes)} class{'es' if len(checkpoint.classes) > 1 else ''}"
    say(f"weights  {shown_path(checkpoint.path)}{newest} ({checkpoint.provenance}, {classes})")
    given = read_any_proposals(proposals) if proposals is not None else None
    failures: dict[Path, str] = {}

    def failed(file: Path, error: UserError) -> None:
        failures[file] = str(error)
        say_error(str(error))

    rows: list[Row] = []  # not the detections: those of a thousand pictures would fill the memory
    with Counter("predicting", len(files)) as counter:
        for prediction in predict_files(checkpoint, files, out, score, failed, given):
            labels = Tally(prediction.detections.labels.tolist())
            counts = Tally({checkpoint.classes[label]: labels[label] for label in sorted(labels)})
            rows.append(Row(prediction.path, prediction.overlay, counts))
            counter.update(len(rows) + len(failures), len(files))
    if as_json:
        print_json(
            {
                "weights": str(checkpoint.path),
                "out": str(out),
                "images": [{"file": str(row.file), "overlay": str(row.overlay), "objects": row.counts} for row in rows],
                "failed": [{"file": str(file), "error": error} for file, error in failures.items()],
            }
        )
    else:
        _show_counts(rows)
    say(f"pictures     {shown_path(out)}/, {len(rows):,} files")
    if len(rows) > 1:
        say(f"overview     {shown_path(out)}/overview.png")
    say(f"predictions  {shown_path(out)}/predictions.json")
    if rows and checkpoint.stuff:
        say(f"segments     {shown_path(out)}/panoptic.json, {shown_path(out)}/panoptic/")
    if failures:
        say_error(f"{len(failures)} of {len(files)} images could not be read; the others are done")
    return int(bool(failures))


def _show_counts(rows: list[Row]) -> None:
    table(
        "Objects per image",
        ["image", "objects", "classes"],
        [
            (shown_path(row.file), row.counts.total(), ", ".join(f"{row.counts[name]} {name}" for name in row.counts))
            for row in rows[:LISTED_IMAGES]
        ],
    )
    if len(rows) > LISTED_IMAGES:
        say(f"... and {len(rows) - LISTED_IMAGES:,} more images")
    totals: Tally[str] = Tally()
    holders: Tally[str] = Tally()
    for row in rows:
        totals.update(row.counts)
        holders.update(row.counts.keys())
    table(
        "Objects per class",
        ["class", "objects", "images with it"],
        [(name, count, holders[name]) for name, count in totals.most_common()],
    )
