"""What the page of `mrcnn data view` shows: a data set with its faults, predictions beside it, or training samples."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.check import annotation_findings
from mrcnn_cli.data.check.faults import FAULTS, Finding, ordered
from mrcnn_cli.data.check.geometry import corners
from mrcnn_cli.data.check.pictures import Picture, look, picture_findings
from mrcnn_cli.data.check.tables import Split, Table
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.coco_file import without_collecting
from mrcnn_cli.data.dataset_file import EVALUATION_SPLITS
from mrcnn_cli.data.image import as_rgb, preview
from mrcnn_cli.data.keypoints import KeypointsConfig, read_categories, visible_points
from mrcnn_cli.data.loader import training_batches
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.engine.data_check import Progress, Source, read_splits
from mrcnn_cli.engine.found import judged, read_predictions
from mrcnn_cli.engine.mask_paths import mask_path
from mrcnn_cli.engine.pixels import fit_pixels
from mrcnn_cli.engine.run import RunConfig, wanted_keypoints
from mrcnn_cli.errors import UserError
from mrcnn_cli.views.gallery import Exhibit, Shape, encoded, write_gallery
from mrcnn_cli.views.skeleton import PLAIN, Skeleton

SIDES = (1024, 768, 512, 384, 256, 192, 160)  # pixels of the longest side of the pictures in the page
BUDGET = 64 * 2**20  # bytes of pictures in the page, where no side is given
TRIALS = 8  # pictures from which their size is estimated


@dataclass(frozen=True)
class Page:
    """What was written."""

    path: Path
    images: int
    left_out: int
    side: int
    size: int


def view_data(
    source: Source,
    out: Path,
    *,
    limit: int,
    side: int | None = None,
    predictions: Path | None = None,
    score: float = 0.5,
    workers: int = 1,
    progress: Progress | None = None,
) -> Page:
    """Write the page of a data set.

    Args:
        source: from `find_source`.
        out: the page.
        limit: most pictures; of more, evenly spaced ones are taken.
        side: longest side of the pictures in the page; None: what keeps them below 64 MB.
        predictions: a COCO results list for one split, which then is the only one shown.
        score: lowest score of a prediction.
        workers: processes that read pictures.
        progress: told how many of how many pictures are read.

    Raises:
        UserError: an annotation file or the predictions cannot be read.
    """
    if predictions is not None and len(source.splits) > 1:
        name = next((known for known in EVALUATION_SPLITS if known in source.splits), next(reversed(source.splits)))
        source = replace(source, splits={name: source.splits[name]})
    with without_collecting():
        splits, unreadable = read_splits(source)
        if unreadable:
            raise UserError(unreadable[0].words)
        splits, left_out = _thinned(splits, limit)
        tables, findings = annotation_findings(splits)
    paths = [table.split.folder / image.file_name for table in tables for image in table.images]
    chosen_side = side or _side(paths)
    pictures: list[Picture] = []
    jpegs: list[bytes] = []
    for picture, jpeg in in_workers(lambda i: _seen(paths[i], chosen_side), range(len(paths)), workers):
        pictures.append(picture)
        jpegs.append(jpeg)
        if progress is not None:
            progress(len(jpegs), len(paths))
    remaining = iter(pictures)
    findings += picture_findings(tables, [[next(remaining) for _ in table.images] for table in tables])
    classes = list(dict.fromkeys(table.categories[n] for table in tables for n in sorted(table.categories)))
    found = None if predictions is None else read_predictions(predictions, tables[0], score)
    exhibits = _exhibits(tables, ordered(findings), classes, jpegs, found)
    shown = f"{len(paths):,} of {len(paths) + left_out:,} pictures, evenly spaced" if left_out else ""
    judged_by = f"predictions of {predictions.name} from score {score:g} on" if predictions is not None else ""
    names = ", ".join(name for name in source.splits if name != source.name)
    about = "; ".join(part for part in (names, shown, judged_by) if part)
    named = [split.name for split in splits]
    size = _write(out, exhibits, source.name, about, named, classes, skeleton=_skeleton(tables))
    return Page(out, len(paths), left_out, chosen_side, size)


def view_samples(
    source: Source, out: Path, config: RunConfig, recipe: str, *, count: int, progress: Progress | None = None
) -> Page:
    """Write a page of the first `count` samples that a training run of this recipe sees, as it sees them.

    Raises:
        UserError: the data set has faults that training would not accept.
    """
    name = "train" if "train" in source.splits else next(iter(source.splits))
    split = source.splits[name]
    assert split.images is not None
    assert split.annotations is not None
    keypoints = wanted_keypoints(config)
    dataset = Dataset.read(split.images, split.annotations, classes=config.data.classes, keypoints=keypoints)
    dataset.check_trainable()
    data, _, _ = fit_pixels(config.data, config.model.pixels, dataset)
    names = {record.id: record.file_name for record in dataset.images}

    def samples() -> Iterator[Exhibit]:
        batches = training_batches(dataset, data, batch_size=1, seed=config.train.seed, steps=count)
        for number, (batch, [targets]) in enumerate(batches):
            height, width = batch.sizes[0]
            pixels = batch.pixels[0, :, :height, :width].permute(1, 2, 0).numpy()
            paths = [""] * len(targets)
            if targets.masks is not None:
                matrix = targets.masks.matrix.numpy()
                paths = [mask_path(mask, matrix) for mask in targets.masks.segmentations]
            points: list[Any] = [()] * len(targets)
            if targets.keypoints is not None:
                points = [visible_points(values, 0.0) for values in targets.keypoints.flatten(1).tolist()]
            shapes = [
                Shape(label, tuple(box), path, keypoints=marks)
                for label, box, path, marks in zip(
                    targets.labels.tolist(), targets.boxes.tolist(), paths, points, strict=True
                )
            ]
            shapes += [Shape(0, tuple(box), name="ignored", crowd=True) for box in targets.crowds.tolist()]
            title = f"sample {number + 1}: {names.get(targets.image_id, 'of several pictures')}"
            yield Exhibit(encoded(as_rgb(pixels)), height, width, title, 0, shapes)
            if progress is not None:
                progress(number + 1, count)

    about = f"the first {count:,} training samples of {recipe}, seed {config.train.seed}, as the network sees them"
    skeleton = _drawn_as(dataset.keypoints)
    size = _write(out, samples(), source.name, about, [name], list(dataset.classes), clip=True, skeleton=skeleton)
    return Page(out, count, 0, 0, size)


def _write(
    out: Path,
    exhibits: Iterator[Exhibit],
    title: str,
    about: str,
    splits: Sequence[str],
    classes: Sequence[str],
    clip: bool = False,
    skeleton: Skeleton = PLAIN,
) -> int:
    severities = {name: fault.severity for name, fault in FAULTS.items()}
    return write_gallery(
        out,
        exhibits,
        title=title,
        about=about,
        splits=splits,
        classes=classes,
        faults=severities,
        clip=clip,
        skeleton=skeleton,
    )


def _exhibits(
    tables: Sequence[Table],
    findings: Sequence[Finding],
    classes: Sequence[str],
    jpegs: Sequence[bytes],
    predictions: dict[int, list[Shape]] | None,
) -> Iterator[Exhibit]:
    remaining = iter(jpegs)
    for number, table in enumerate(tables):
        of_image: dict[int, list[tuple[str, str]]] = {}
        of_annotation: dict[int, list[str]] = {}
        for finding in findings:
            if finding.source != str(table.split.path) or finding.image_id is None:
                continue
            words = finding.words
            if finding.place is not None and finding.place[0] == "annotations":
                of_annotation.setdefault(finding.place[1], []).append(f"{finding.fault}: {words}")
                words = f"annotation {finding.annotation_id}: {words}"
            of_image.setdefault(finding.image_id, []).append((finding.fault, words))
        shapes = _shapes(table, classes, of_annotation)
        for place, image in enumerate(table.images):
            objects, found = shapes[place], None
            if predictions is not None:
                objects, found = judged(objects, predictions.get(image.id, []))
            size = (image.height or 1, image.width or 1)
            faults = of_image.get(image.id, [])
            yield Exhibit(next(remaining), *size, image.file_name, number, objects, found, faults)


def _shapes(table: Table, classes: Sequence[str], faults: dict[int, list[str]]) -> list[list[Shape]]:
    """Per image its objects; one whose box is unsound gets its mask's, or is not drawn."""
    boxes, mask_boxes = corners(table.bboxes), table.mask_boxes()
    boxes = np.where(np.isfinite(boxes), boxes, mask_boxes)
    labels = {number: classes.index(name) for number, name in table.categories.items()}
    shapes: list[list[Shape]] = [[] for _ in table.images]
    for a in np.flatnonzero(np.isfinite(boxes).all(axis=1)).tolist():
        mask: Any = table.encodings.get(a) or table.polygons.of(a)
        path = mask_path(mask) if mask else ""
        wrong = tuple(faults.get(int(table.places[a]), ()))
        name = f"annotation {table.ids[a]}" if table.ids[a] >= 0 else ""
        label = labels[int(table.category[a])]
        points = visible_points(table.entry(a).get("keypoints"), KeypointsConfig().offset)
        box, crowd = tuple(boxes[a].tolist()), bool(table.crowd[a])
        shape = Shape(label, box, path, name, crowd, faults=wrong, keypoints=points)
        shapes[table.image[a]].append(shape)
    return shapes


def _skeleton(tables: Sequence[Table]) -> Skeleton:
    """Names and lines of the keypoints, of the first file that names them as it should."""
    for table in tables:
        try:
            keypoints, _ = read_categories(table.split.path, table.split.content["categories"], KeypointsConfig())
        except UserError:
            continue
        if keypoints is not None:
            return _drawn_as(keypoints)
    return PLAIN


def _drawn_as(keypoints: KeypointsConfig | None) -> Skeleton:
    return PLAIN if keypoints is None else Skeleton(keypoints.names or (), keypoints.lines())


def _thinned(splits: Sequence[Split], limit: int) -> tuple[list[Split], int]:
    """At most so many images of all splits together, evenly spaced, with their annotations; how many are left out."""
    total = sum(len(split.content["images"]) for split in splits)
    if total <= limit:
        return list(splits), 0
    kept = set(np.linspace(0, total - 1, limit).round().astype(int).tolist())
    counter = itertools.count()
    thinned = []
    for split in splits:
        images = [image for image in split.content["images"] if next(counter) in kept]
        ids = {image.get("id") for image in images}
        annotations = [a for a in split.content["annotations"] if a.get("image_id") in ids]
        thinned.append(replace(split, content={**split.content, "images": images, "annotations": annotations}))
    return thinned, total - len(kept)


def _side(paths: Sequence[Path]) -> int:
    """The longest side of `SIDES` with which all pictures stay within `BUDGET`, by the look of a few."""
    few = [paths[int(i)] for i in np.linspace(0, len(paths) - 1, min(TRIALS, len(paths)))]
    for side in SIDES:
        sizes = [len(jpeg) for _, jpeg in (_seen(path, side) for path in few) if jpeg]
        if not sizes or np.mean(sizes) * len(paths) * 4 / 3 <= BUDGET:  # base64 takes a third more
            return side
    return SIDES[-1]


def _seen(path: Path, side: int) -> tuple[Picture, bytes]:
    picture = look(path)
    return picture, encoded(preview(path, side)) if picture.fault is None else b""
