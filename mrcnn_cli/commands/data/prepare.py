"""mrcnn data prepare: annotations of any format, made ready for training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mrcnn_cli.commands.console import (
    Verb,
    json_option,
    print_json,
    say,
    say_error,
    say_warning,
    shown_path,
    table,
    typed_path,
)
from mrcnn_cli.commands.progress import Activity

SHOWN_FAULTS = 20
# The keys of data.formats.FORMATS, which cannot be imported for the help: that would load torch.
FORMATS = (
    "coco",
    "lvis",
    "panoptic",
    "yolo",
    "voc",
    "labelme",
    "via",
    "cvat",
    "cityscapes",
    "kitti",
    "openimages",
    "tfrecord",
    "csv",
    "frcnn",
    "rle-csv",
    "instance-masks",
    "label-maps",
    "prepared",
)


def source_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a source is read."""
    options = [
        click.argument("source", type=click.Path(path_type=Path)),
        click.option(
            "--format",
            metavar="FORMAT",
            show_default="guessed",
            help=f"The format of the annotations: {', '.join(FORMATS)}.",
        ),
        click.option(
            "--images",
            type=click.Path(path_type=Path),
            metavar="DIR",
            show_default="found below the source",
            help="Where the images are.",
        ),
        click.option(
            "--classes",
            metavar="NAMES",
            show_default="all of the source",
            help="Classes to take, in label order: a,b,c or a text file with a name on each line.",
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            show_default="nothing",
            help="An option of the format, for example difficult=ignore for voc; may be repeated.",
        ),
    ]
    for option in reversed(options):
        verb = option(verb)
    return verb


@click.command(
    "prepare",
    cls=Verb,
    examples=[
        "mrcnn data prepare photos -o data",
        "mrcnn data prepare VOC2012 -o voc --set difficult=ignore",
        "mrcnn data prepare slides -o data --val 0.2 --group '(patient\\d+)'",
    ],
)
@source_options
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder that is written."
)
@click.option(
    "--val",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    show_default="the source's, else 0.1",
    help="The part of the images that is kept to evaluate on.",
)
@click.option(
    "--test",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    show_default="the source's, else 0",
    help="The part of the images that is kept for a last test.",
)
@click.option(
    "--group",
    metavar="folder|REGEX",
    show_default="each image for itself",
    help="Images of one folder, or with the same match of a regular expression in their paths, stay in one split.",
)
@click.option("--seed", default=0, metavar="NUMBER", help="Of the draw of the splits.")
@click.option("--resplit", is_flag=True, help="Draw new splits though the source has its own.")
@click.option("--copy", is_flag=True, help="Copy the images into the folder instead of naming where they are.")
@json_option
def command(
    source: Path,
    format: str | None,
    images: Path | None,
    classes: str | None,
    assignments: tuple[str, ...],
    out: Path,
    val: float | None,
    test: float | None,
    group: str | None,
    seed: int,
    resplit: bool,
    copy: bool,
    as_json: bool,
) -> int | None:
    """Make annotations of any format ready for 'mrcnn train --data DIR'.

    SOURCE is an annotation file or a folder. Its format is guessed unless it is named; it is only read.
    """
    from mrcnn_cli.data.dataset_file import FILE_NAME
    from mrcnn_cli.engine.prepare import check_target, prepare

    check_target(out, source, FILE_NAME)
    collected = read_source(source, format, images, classes, assignments, out)
    record = {"images": str(images.resolve())} if images else {}
    record |= {"classes": classes} if classes else {}
    record |= {"set": list(assignments)} if assignments else {}  # type: ignore[dict-item]
    record |= {"seed": seed, "group": group} if group else {"seed": seed}  # type: ignore[dict-item]
    written = prepare(
        collected,
        source,
        out,
        val=val,
        test=test,
        group=group,
        seed=seed,
        resplit=resplit,
        copy=copy,
        options=record,
    )
    for line in written.notes:
        say(line)
    for line in written.warnings:
        say_warning(line)
    if as_json:
        print_json(report(collected, written))
    else:
        show_counts(written)
        say(f"written  {shown_path(out)}/{FILE_NAME}")
        if "train" in written.splits:
            say(f"next     mrcnn train --data {typed_path(out)}")
        else:
            say(f"next     mrcnn evaluate --data {typed_path(out)}")
    return say_faults(collected)


def read_source(
    source: Path,
    format: str | None,
    images: Path | None,
    classes: str | None,
    assignments: tuple[str, ...],
    out: Path,
) -> Any:
    """What is in the source; says what it was taken for."""
    from mrcnn_cli.engine.prepare import collect

    names = class_names(classes)
    with Activity("reading") as activity:
        collected = collect(
            source,
            format=format,
            images=images,
            classes=names,
            options=assignments,
            out=out,
            progress=lambda count: activity.say(f"read {count:,} images"),
        )
    if collected.reason:
        say(f"format   {collected.format}: {collected.reason}")
    for line in collected.notes:
        say_warning(line)
    return collected


def class_names(text: str | None) -> list[str]:
    """Of a,b,c or of a file with a name on each line."""
    if text is None:
        return []
    path = Path(text)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return [line.strip() for line in lines if line.strip()]


def show_counts(written: Any) -> None:
    rows = [
        [name, entry["images"], entry["objects"], entry["ignored"], len(entry["classes"])]
        for name, entry in written.splits.items()
    ]
    table("", ["split", "images", "objects", "ignored", "classes"], rows)


def report(collected: Any, written: Any) -> dict[str, Any]:
    """For --json."""
    return {
        "format": collected.format,
        "out": str(written.folder),
        "classes": collected.collection.classes,
        "splits": written.splits,
        "notes": collected.notes + written.notes,
        "warnings": written.warnings,
        "faults": collected.faults,
    }


def say_faults(collected: Any) -> int | None:
    """Names what could not be read, and how much it was; the exit status."""
    faults = collected.faults
    if not faults:
        return None
    for line in faults[:SHOWN_FAULTS]:
        say_warning(line)
    if len(faults) > SHOWN_FAULTS:
        say_warning(f"... and {len(faults) - SHOWN_FAULTS:,} more; --json lists all")
    say_error(f"{len(faults):,} faults in the source, which were left out; all else was written")
    return 1
