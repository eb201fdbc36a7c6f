"""mrcnn proposals: a region proposal network's boxes, kept in a file."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import (
    Verb,
    device_option,
    json_option,
    print_json,
    recall_table,
    say,
    say_warning,
    set_option,
    shown_path,
)
from mrcnn_cli.commands.progress import Counter


@click.command(
    "proposals",
    cls=Verb,
    examples=[
        "mrcnn proposals --data train2017 instances_train2017.json --weights runs/rpn --out train.safetensors",
        "mrcnn proposals images/ --weights runs/rpn",
    ],
)
@click.argument("images", nargs=-1, metavar="[IMAGES...]")
@click.option(
    "--data",
    nargs=2,
    metavar="DIR ANNOTATIONS",
    show_default="none, but IMAGES",
    help="Images and their COCO annotations.",
)
@click.option(
    "--weights", metavar="RUN|FILE", show_default="the newest run", help="A run, for its best weights, or a checkpoint."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default=Path("proposals.safetensors"),
    help="Where the proposals go.",
)
@set_option("model.rpn.post_nms_top_n=2000")
@device_option
@json_option
def command(
    images: tuple[str, ...],
    data: tuple[str, str] | None,
    weights: str | None,
    out: Path,
    assignments: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Write the proposals of any model that has a region proposal network, to train Fast R-CNN on.

    IMAGES are files, folders (with what is below them) and patterns; with --data also says how many of the objects
    the proposals cover.
    """
    if bool(images) == (data is not None):
        raise click.UsageError("give either IMAGES or --data DIR ANNOTATIONS")

    from mrcnn_cli.data.coco import Dataset
    from mrcnn_cli.data.proposals import packed
    from mrcnn_cli.engine.checkpoint import load
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.predict import find_images
    from mrcnn_cli.engine.proposals import check_proposes, propose_dataset, propose_files
    from mrcnn_cli.engine.run import choose_device, latest_run

    keep_freed_memory()
    checkpoint = load(weights or latest_run(), choose_device(device), assignments)
    check_proposes(checkpoint)
    make_folder(out.parent)  # before the work, not after it
    say(f"weights    {shown_path(checkpoint.path)} (step {checkpoint.step})")
    metrics = None
    with Counter("proposing") as counter:
        if data is not None:
            dataset = Dataset.read(*data)
            for warning in dataset.warnings:
                say_warning(warning)
            proposals, metrics = propose_dataset(checkpoint, dataset, out, counter.update)
        else:
            proposals = propose_files(checkpoint, find_images(images), out, counter.update)
    write_bytes(out, packed(proposals))
    if as_json:
        counts = {"images": len(proposals), "proposals": len(proposals.boxes)}
        print_json({"weights": str(checkpoint.path), "out": str(out), **counts, "metrics": metrics})
    elif metrics is not None:
        recall_table(metrics)
    pictures = f"{len(proposals):,} image{'s' if len(proposals) > 1 else ''}"
    say(f"written  {shown_path(out)}: {len(proposals.boxes):,} proposals for {pictures}")
