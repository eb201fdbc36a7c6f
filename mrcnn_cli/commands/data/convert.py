"""mrcnn data convert: annotations of any format, in another."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, json_option, print_json, say, say_warning, shown_path
from mrcnn_cli.commands.data.prepare import read_source, report, say_faults, show_counts, source_options


@click.command(
    "convert",
    cls=Verb,
    examples=[
        "mrcnn data convert photos --to yolo -o yolo",
        "mrcnn data convert prepared --to voc -o voc --copy",
    ],
)
@source_options
@click.option("--to", "target", required=True, metavar="FORMAT", help="coco, yolo, voc, labelme or rle-csv.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder that is written."
)
@click.option("--copy", is_flag=True, help="Copy the images instead of linking to them.")
@json_option
def command(
    source: Path,
    format: str | None,
    images: Path | None,
    classes: str | None,
    assignments: tuple[str, ...],
    target: str,
    out: Path,
    copy: bool,
    as_json: bool,
) -> int | None:
    """Write annotations of any format in another, and say what that cannot hold.

    SOURCE is an annotation file, a folder, or a data set that 'mrcnn data prepare' wrote; it is only read.
    """
    from mrcnn_cli.engine.prepare import check_convert, convert

    check_convert(target, out, source)
    collected = read_source(source, format, images, classes, assignments, out)
    written = convert(collected.collection, source, target, out, copy=copy)
    for line in written.notes:
        say_warning(f"{target} cannot hold all: {line}")
    if as_json:
        print_json(report(collected, written))
    else:
        show_counts(written)
        say(f"written  {shown_path(out)}")
    return say_faults(collected)
