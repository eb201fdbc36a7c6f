"""What is in pictures: from files or arrays to detections, overlays and a COCO results list."""

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.annotations import ImageRecord
from mrcnn_cli.data.image import SUFFIXES, as_rgb, normalize, read_image
from mrcnn_cli.data.loader import images_batch
from mrcnn_cli.data.proposals import Proposals
from mrcnn_cli.engine.checkpoint import Checkpoint
from mrcnn_cli.engine.evaluate import predict_batch
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.engine.panoptic import PanopticFiles
from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation import coco
from mrcnn_cli.structures import Detections
from mrcnn_cli.views import canvas
from mrcnn_cli.views.overlay import contact_sheet, draw
from mrcnn_cli.views.segments import draw_segments
from mrcnn_cli.views.skeleton import Skeleton

# The first so many pictures are shown together in overview.png.
OVERVIEW = 12


@dataclass(frozen=True)
class Prediction:
    """One picture done: where it lies, what was found, and its overlay."""

    path: Path
    detections: Detections
    overlay: Path


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """The image files that files, folders (with what is below them) and glob patterns name; each once, in order.

    Raises:
        UserError: a source that names none.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not files:
                raise UserError(f"{source}: no images in this folder (known: {', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
            if not files:
                raise UserError(f"{source}: no such file or folder, and no file matches it as a pattern")
        found |= dict.fromkeys(files)
    return list(found)


def predict(
    checkpoint: Checkpoint,
    images: Iterable[Any],
    score_threshold: float | None = None,
    proposals: Iterable[np.ndarray] | None = None,
) -> list[Detections]:
    """What is in each picture, best first, in its own pixels.

    Args:
        checkpoint: from `load`.
        images: paths, arrays [H, W, C] or, of one channel, [H, W], with pixels as in files; or PIL images.
        score_threshold: lowest score; None: the recipe's predict.score_threshold.
        proposals: per picture [P_i, 4] x1, y1, x2, y2 in its pixels, best first, for Fast R-CNN.
    """
    check_proposals(checkpoint, proposals is not None)
    threshold = checkpoint.config.predict.score_threshold if score_threshold is None else score_threshold
    pictures = list(images)
    given: list[np.ndarray | None] = [None] * len(pictures) if proposals is None else list(proposals)
    if len(given) != len(pictures):
        raise UserError(f"proposals of {len(given)} pictures were given for {len(pictures)}: give one array for each")
    results = []
    channels = checkpoint.config.data.channels or 3
    for image, boxes in zip(pictures, given, strict=True):
        if boxes is not None and (np.ndim(boxes) != 2 or np.shape(boxes)[1] != 4):
            raise UserError(f"proposals of a picture must be [P, 4], got an array of shape {list(np.shape(boxes))}")
        array = read_image(image, channels) if isinstance(image, str | Path) else as_array(image, channels)
        results.append(_detect(checkpoint, array, boxes).above(threshold))
    return results


def predict_files(
    checkpoint: Checkpoint,
    files: Sequence[Path],
    out: Path,
    score_threshold: float | None = None,
    on_unreadable: Callable[[Path, UserError], None] | None = None,
    proposals: Proposals | None = None,
) -> Iterator[Prediction]:
    """Predict each file; writes its overlay below `out`, and at the end out/predictions.json and out/overview.png.

    predictions.json is a list of COCO results: image_id (the file's place in the list, from 1), category_id, bbox,
    score, segmentation (compressed run lengths), keypoints ([x, y, score, ...]) and file_name, as far as the model has
    them. A panoptic model's segments are in out/panoptic.json and the PNG files of out/panoptic/, in COCO's panoptic
    format; its overlays show them.

    Args:
        checkpoint: from `load`.
        files: images.
        out: the folder to write to.
        score_threshold: lowest score; None: the recipe's predict.score_threshold.
        on_unreadable: told of each file that is no image, which is then left out; None: the first one ends it all.
        proposals: of all files, found by their names, for Fast R-CNN.

    Raises:
        UserError: a file that is no image; a folder that cannot be written; proposals that are missing or not needed.
    """
    check_proposals(checkpoint, proposals is not None)
    records = [ImageRecord(-1, str(file), 0, 0, Path()) for file in files]
    given = None if proposals is None else proposals.matched(records)
    config = checkpoint.config
    threshold = config.predict.score_threshold if score_threshold is None else score_threshold
    points = config.data.keypoints
    skeleton = Skeleton(points.names or (), points.lines(), config.predict.keypoint_threshold)
    make_folder(out)
    overlays = overlay_paths(files, out)
    results: list[dict[str, Any]] = []
    pictures: list[Any] = []
    segments = PanopticFiles(out / "panoptic.json", [*checkpoint.categories, *checkpoint.stuff])
    try:
        for number, (file, overlay) in enumerate(zip(files, overlays, strict=True), start=1):
            try:
                image = read_image(file, checkpoint.config.data.channels)
            except UserError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(file, error)
                continue
            boxes = None
            if given is not None:
                given.proposals.check_size(int(given.places[number - 1]), str(file), (image.shape[0], image.shape[1]))
                boxes = given[number - 1]
            found = _detect(checkpoint, image, boxes).above(threshold)
            make_folder(overlay.parent)
            # People should see what the network sees: a dim microscope image is drawn as it was stretched.
            shown = as_rgb(normalize(image, config.data.normalize))
            if found.segments is None:
                picture = draw(shown, found, checkpoint.classes, skeleton=skeleton)
            else:
                names = (*checkpoint.classes, *(checkpoint.stuff_classes or ()))
                picture = draw_segments(shown, found.segments, names, len(checkpoint.classes))
                segments.add(found.segments, number, str(file), str(overlay.relative_to(out)))
            canvas.save(picture, overlay)
            if len(pictures) < OVERVIEW:
                pictures.append(picture)
            offset = config.data.keypoints.offset
            results += coco.results(found, number, checkpoint.category_ids, str(file), offset)
            yield Prediction(file, found, overlay)
    finally:  # after Ctrl-C too: what is done is kept
        write_bytes(out / "predictions.json", json.dumps(results).encode())
        segments.write()
        if len(pictures) > 1:
            canvas.save(contact_sheet(pictures), out / "overview.png")


def check_proposals(checkpoint: Checkpoint, given: bool) -> None:
    """Nothing, where proposals are given to a model that needs some, or not given to one that finds its own.

    Raises:
        UserError: otherwise.
    """
    name = checkpoint.config.model.name
    if name == "fast_rcnn" and not given:
        raise UserError(
            f"{checkpoint.path}: {name} finds no proposals of its own; make them with 'mrcnn proposals IMAGES' and a "
            "model that does, and give --proposals FILE"
        )
    if given and name != "fast_rcnn":
        raise UserError(f"{checkpoint.path}: {name} finds its own proposals; leave --proposals out")


def as_array(image: Any, channels: int = 3) -> np.ndarray:
    """[H, W, C] of an array or a PIL image, as `data.image.read_image` would give it.

    Args:
        image: [H, W, C]; [H, W] of one channel, which is repeated for C = 3; or a PIL image.
        channels: C.

    Raises:
        UserError: neither of them, or an array of another shape.
    """
    if hasattr(image, "convert"):  # a PIL image, without importing PIL here
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if mode is None:
            raise UserError(f"an image must be an array [H, W, {channels}], got a PIL image ({image.mode})")
        image = image.convert(mode)
    array = np.asarray(image)
    if array.ndim == 2 and channels in (1, 3):
        array = np.repeat(array[:, :, None], channels, axis=2)
    if array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        grey = " or [H, W]" if channels in (1, 3) else ""
        raise UserError(f"an image must be [H, W, {channels}]{grey}, got an array of shape {list(array.shape)}")
    return array


def _detect(checkpoint: Checkpoint, image: np.ndarray, proposals: np.ndarray | None = None) -> Detections:
    batch = images_batch([image], checkpoint.config.data, None if proposals is None else [proposals])
    return predict_batch(checkpoint.model, batch, checkpoint.device)[0]


def overlay_paths(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each file's overlay goes: below `out` as below the files' common folder, so that equal names stay apart.

    Raises:
        UserError: an overlay would overwrite one of the files.
    """
    folders = [file.resolve().parent for file in files]
    common = folders[0] if folders else Path()
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    paths, taken = [], {out / "overview.png"}
    for file, folder in zip(files, folders, strict=True):
        path = out / folder.relative_to(common) / f"{file.stem}.png"
        if path in taken:  # a.jpg beside a.png
            path = path.with_name(f"{file.name}.png")
        taken.add(path)
        paths.append(path)
    overwritten = {path.resolve() for path in paths} & {file.resolve() for file in files}
    if overwritten:
        raise UserError(f"{out}: {min(overwritten).name} would overwrite the picture itself; choose another --out")
    return paths
