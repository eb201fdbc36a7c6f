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


@click.command(
    "evaluate",
    cls=Verb,
    examples=["mrcnn evaluate", "mrcnn evaluate runs/longer --data photos photos.json --out evaluation"],
)
@click.argument("weights", required=False, metavar="[RUN|CHECKPOINT]")
@click.option(
    "--data",
    nargs=2,
    metavar="DIR ANNOTATIONS",
    show_default="the run's validation images",
    help="Images and their COCO annotations.",
)
@set_option("evaluate.max_detections=300")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="nothing is written",
    help="Write metrics.json and results.json (a COCO results list) into this folder.",
)
@device_option
@json_option
def command(
    weights: str | None,
    data: tuple[str, str] | None,
    assignments: tuple[str, ...],
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Evaluate a trained model by COCO's metrics.

    RUN is a run's folder, of which the best weights are taken; by default the newest run.
    """
    from mrcnn_cli.data.coco import Dataset
    from mrcnn_cli.engine.checkpoint import load
    from mrcnn_cli.engine.evaluate import evaluate
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.run import choose_device, latest_run

    keep_freed_memory()
    checkpoint = load(weights or latest_run(), choose_device(device), assignments)
    split = checkpoint.config.data.val
    images, annotations = map(Path, data) if data else (split.images, split.annotations)
    if images is None or annotations is None:
        raise UserError(f"{checkpoint.path}: its run had no validation images; give some with --data DIR ANNOTATIONS")
    if out is not None:
        make_folder(out)  # before the work, not after it
    dataset = Dataset.read(images, annotations, classes=checkpoint.classes)
    for warning in dataset.warnings:
        say_warning(warning)
    say(f"weights  {shown_path(checkpoint.path)} (step {checkpoint.step})")
    say(f"data     {len(dataset):,} images of {shown_path(annotations)}")
    with Counter("evaluating", len(dataset)) as counter:
        metrics, results = evaluate(
            checkpoint.model, checkpoint.config, dataset, checkpoint.device, progress=counter.update
        )
    assert metrics is not None  # only a stopped evaluation has none
    if out is not None:
        write_bytes(out / "metrics.json", json.dumps(metrics, indent=2).encode())
        write_bytes(out / "results.json", json.dumps(results).encode())
    if as_json:
        print_json(metrics)
    else:
        metrics_tables(metrics)
    if out is not None:
        say(f"written  {shown_path(out)}/metrics.json, {shown_path(out)}/results.json")
