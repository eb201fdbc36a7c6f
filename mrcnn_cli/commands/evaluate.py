"""mrcnn evaluate: how good a trained model is on annotated images."""

import json
from pathlib import Path

import click

from mrcnn_cli.commands.console import (
    Verb,
    device_option,
    json_option,
    metrics_tables,
    print_json,
    say,
    say_warning,
    set_option,
    shown_path,
)
from mrcnn_cli.commands.progress import Counter
from mrcnn_cli.errors import UserError

PICTURES = 12  # as many as the overview of predictions shows


class Evaluate(Verb):
    """--data takes a prepared data set or, where an annotation file follows, a folder of images with it."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        for place, word in enumerate(args[:-2]):
            if word == "--data" and args[place + 2].endswith(".json"):
                args = [*args[:place], "--pair", *args[place + 1 :]]
        return super().parse_args(context, args)


@click.command(
    "evaluate",
    cls=Evaluate,
    examples=[
        "mrcnn evaluate",
        "mrcnn evaluate runs/longer --data photos photos.json --out evaluation --pictures 30",
        "mrcnn evaluate --data prepared --split test",
    ],
)
@click.argument("weights", required=False, metavar="[RUN|CHECKPOINT]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DATA | DIR ANNOTATIONS.json",
    show_default="the run's validation images",
    help="A folder that 'mrcnn data prepare' wrote, or images and their COCO annotations.",
)
@click.option("--pair", nargs=2, hidden=True)
@click.option(
    "--split",
    metavar="NAME",
    show_default="val, else test, else train",
    help="The split of a prepared data set.",
)
@set_option("evaluate.max_detections=300")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="nothing is written",
    help="Write metrics.json, results.json (a COCO results list) and pictures into this folder; panoptic.json too.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    show_default=f"{PICTURES} with --out",
    help="Draw so many of the images with the most mistakes, the truth beside the prediction.",
)
@device_option
@json_option
def command(
    weights: str | None,
    data: Path | None,
    pair: tuple[str, str] | None,
    split: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    pictures: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Evaluate a trained model by COCO's metrics.

    RUN is a run's folder, of which the best weights are taken; by default the newest run. CHECKPOINT may be a file of
    another system too.
    """
    if split is not None and data is None:
        raise click.UsageError("--split names a split of a prepared data set: give it with --data DATA")
    if data is not None and pair:
        raise click.UsageError("--data is given twice: once with an annotation file, once without")

    if pictures is not None and out is None:
        raise click.UsageError("--pictures are written into a folder: give it with --out DIR")

    from mrcnn_cli.data.dataset_file import evaluation_split, read_dataset_file
    from mrcnn_cli.data.loader import SplitConfig
    from mrcnn_cli.engine.checkpoint import load
    from mrcnn_cli.engine.comparison import write_comparisons
    from mrcnn_cli.engine.evaluate import evaluate
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.panoptic import PanopticFiles
    from mrcnn_cli.engine.run import choose_device, latest_run, read_split, wanted_keypoints

    prepared = evaluation_split(read_dataset_file(data), split) if data is not None else None
    keep_freed_memory()
    checkpoint = load(weights or latest_run(), choose_device(device), assignments)
    chosen = prepared or checkpoint.config.data.val
    images, annotations = map(Path, pair) if pair else (chosen.images, chosen.annotations)
    if images is None or annotations is None:
        raise UserError(
            f"{checkpoint.path}: its run had no validation images; give some with --data DIR ANNOTATIONS.json"
        )
    if out is not None:
        make_folder(out)  # before the work, not after it
    config = checkpoint.config
    evaluated = SplitConfig(
        images=images,
        annotations=annotations,
        proposals=config.data.val.proposals,
        semantic=None if pair else chosen.semantic,
    )
    dataset = read_split(
        config, evaluated, checkpoint.classes, wanted_keypoints(config), checkpoint.stuff_classes, name="val"
    )
    for warning in dataset.warnings:
        say_warning(warning)
    say(f"weights  {shown_path(checkpoint.path)} ({checkpoint.provenance})")
    say(f"data     {len(dataset):,} images of {shown_path(annotations)}")
    segments = None
    if out is not None and dataset.maps is not None:
        segments = PanopticFiles(out / "panoptic.json", dataset.categories)
    with Counter("evaluating", len(dataset)) as counter:
        metrics, results = evaluate(
            checkpoint.model,
            checkpoint.config,
            dataset,
            checkpoint.device,
            progress=counter.update,
            segments=segments,
        )
    assert metrics is not None  # only a stopped evaluation has none
    if out is not None:
        write_bytes(out / "metrics.json", json.dumps(metrics, indent=2).encode())
        written = ["metrics.json"]
        if "proposal_ar1000" not in metrics:  # proposals are no results; 'mrcnn proposals' writes them
            write_bytes(out / "results.json", json.dumps(results).encode())
            written.append("results.json")
            if pictures != 0:
                write_comparisons(out, dataset, config, results, PICTURES if pictures is None else pictures)
                written += ["pictures/", "overview.png"]
        if segments is not None and segments.write():
            written += ["panoptic.json", "panoptic/"]
    if as_json:
        print_json(metrics)
    else:
        metrics_tables(metrics)
    if out is not None:
        say(f"written  {', '.join(f'{shown_path(out)}/{name}' for name in written)}")
