"""mrcnn data tile: large pictures cut into small ones."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, json_option, print_json, say, say_error, shown_path, table, typed_path
from mrcnn_cli.commands.data.source import workers_option
from mrcnn_cli.commands.progress import Counter
from mrcnn_cli.errors import UserError


@click.command(
    "tile",
    cls=Verb,
    examples=["mrcnn data tile data -o tiles", "mrcnn data tile data -o tiles --size 512 --overlap 96 --drop-empty"],
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="A new or empty folder."
)
@click.option("--size", type=click.IntRange(32), metavar="PIXELS", default=1024, help="Sides of a tile.")
@click.option(
    "--overlap",
    type=click.IntRange(0),
    metavar="PIXELS",
    default=128,
    help="What neighbours have in common at least; an object no larger is whole in one of them.",
)
@click.option(
    "--min-visible",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    default=0.1,
    help="An object of which a tile shows less is a region to ignore there.",
)
@click.option("--drop-empty", is_flag=True, help="Leave out tiles that show no object.")
@workers_option("read and write images")
@json_option
def command(
    data: Path,
    out: Path,
    size: int,
    overlap: int,
    min_visible: float,
    drop_empty: bool,
    workers: int,
    as_json: bool,
) -> int:
    """Cut large images into overlapping tiles, and their objects with them.

    DATA is a folder that 'mrcnn data prepare' wrote. Polygons are clipped exactly, bitmaps cut to the pixel, boxes
    shrink to what is left of the mask. Tiles are written without loss, and the annotation files say where each one lies
    in its image.
    """
    if overlap >= size:
        raise UserError(f"--overlap {overlap}: must be less than --size ({size})")

    from mrcnn_cli.data.tiles import Tiling
    from mrcnn_cli.engine.tile import tile

    tiling = Tiling(size, overlap, min_visible)
    with Counter("cutting") as counter:
        tiled = tile(data, out, tiling, drop_empty=drop_empty, workers=workers, progress=counter.update)
    for fault in tiled.faults:
        say_error(fault)
    if as_json:
        print_json({"folder": str(out), "splits": tiled.splits, "faults": tiled.faults})
    else:
        rows = [[name, *counts.values()] for name, counts in tiled.splits.items()]
        table("", ["split", "images", "tiles", "objects", "ignored"], rows)
    say(f"folder   {shown_path(out)}")
    say(f"next     mrcnn train --data {typed_path(out)}")
    if tiled.faults:
        say_error(f"{len(tiled.faults)} of the images could not be read and were left out")
    return int(bool(tiled.faults))
