"""mrcnn data synth: data that is made up, its masks exact."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, Verbs, json_option, print_json, say, shown_path, typed_path
from mrcnn_cli.commands.progress import Counter

command = Verbs(
    "synth",
    help="Make up annotated pictures, to try things on.",
    examples=["mrcnn data synth shapes -o shapes"],
)


@command.command(
    "shapes",
    cls=Verb,
    examples=[
        "mrcnn data synth shapes -o shapes",
        "mrcnn data synth shapes -o shapes --train 1000 --val 100 --size 256 384 --most 8",
    ],
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="A new or empty folder."
)
@click.option("--train", type=click.IntRange(1), metavar="N", default=200, help="Pictures to learn from.")
@click.option("--val", type=click.IntRange(0), metavar="N", default=40, help="Pictures to evaluate on.")
@click.option(
    "--size", type=click.IntRange(16, 8192), nargs=2, metavar="HEIGHT WIDTH", default=(128, 128), help="Pixels."
)
@click.option("--most", type=click.IntRange(1, 100), metavar="N", default=4, help="Shapes in a picture, at most.")
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, help="The same seed makes the same pictures.")
@json_option
def shapes(out: Path, train: int, val: int, size: tuple[int, int], most: int, seed: int, as_json: bool) -> None:
    """Draw squares, circles and triangles with exact masks.

    Each picture has a background and shapes of one colour each; those in front hide parts of those behind. Picture k
    of a split is the same one however many there are.
    """
    from mrcnn_cli.engine.synth import write_shapes

    with Counter("drawing", train + val) as counter:
        counts = write_shapes(out, {"train": train, "val": val}, size, most, seed, counter.update)
    if as_json:
        print_json({"folder": str(out), "splits": counts})
        return
    for name, count in counts.items():
        say(f"{name:8} {count['images']:,} images with {count['objects']:,} objects")
    say(f"folder   {shown_path(out)}")
    say(f"next     mrcnn train --data {typed_path(out)}")
