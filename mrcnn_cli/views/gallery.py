"""One self-contained HTML page that shows a data set: pictures, masks, faults, and predictions beside the truth.

Each picture is a block of JSON of its own in the page, read when it comes into sight, so that thousands cost nothing
until they are looked at. The page asks the network for nothing, and its policy forbids it.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mrcnn_cli.errors import UserError
from mrcnn_cli.views.colours import choose, palette
from mrcnn_cli.views.skeleton import PLAIN, Skeleton

HERE = Path(__file__).parent
PER_PAGE = 100  # pictures shown at once
QUALITY = 80  # of JPEG


@dataclass(frozen=True, slots=True)
class Shape:
    """One object, true or predicted.

    Attributes:
        label: 0..K-1.
        box: x1, y1, x2, y2 in pixels of the picture.
        path: the mask's outline as an SVG path in these pixels; "" without a mask.
        name: what it is called beside its class, such as "annotation 12".
        crowd: a region of many objects.
        score: of a prediction, else None.
        missed: a true object that no prediction found, or a prediction where nothing is.
        faults: what is wrong with it, in words.
        keypoints: x, y of each, None where it is not to be shown.
    """

    label: int
    box: tuple[float, float, float, float]
    path: str = ""
    name: str = ""
    crowd: bool = False
    score: float | None = None
    missed: bool = False
    faults: tuple[str, ...] = ()
    keypoints: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One picture and what is on it.

    Attributes:
        jpeg: the picture, see `encoded`; b"" where there is none.
        height, width: in the pixels that boxes and paths are in.
        name: of the file.
        split: its index among the splits.
        objects: the truth.
        predictions: None: there are none to show.
        faults: name of the fault -> in words, where.
    """

    jpeg: bytes
    height: int
    width: int
    name: str
    split: int
    objects: list[Shape]
    predictions: list[Shape] | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)


def encoded(image: np.ndarray) -> bytes:
    """A picture uint8 [h, w, 3] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def svg_path(rings: Iterable[np.ndarray], digits: int = 1) -> str:
    """An SVG path of closed rings [P, 2] of x, y, as short as it gets with so many digits behind the point."""
    parts = []
    unit = 10**digits
    for ring in rings:
        points = np.rint(np.asarray(ring, np.float64) * unit).astype(np.int64)
        parts.append(f"M{_text(points[0, 0], unit)} {_text(points[0, 1], unit)}")
        for dx, dy in np.diff(points, axis=0).tolist():  # of what was rounded, so that nothing adds up
            if dx and dy:
                parts.append(f"l{_text(dx, unit)} {_text(dy, unit)}")
            elif dx or dy:
                parts.append(f"h{_text(dx, unit)}" if dx else f"v{_text(dy, unit)}")
        parts.append("z")
    return "".join(parts)


def write_gallery(
    path: Path,
    exhibits: Iterable[Exhibit],
    *,
    title: str,
    about: str,
    splits: Sequence[str],
    classes: Sequence[str],
    faults: Mapping[str, str],
    clip: bool = False,
    skeleton: Skeleton = PLAIN,
) -> int:
    """Write the page, whole or not at all; its size in bytes.

    Args:
        path: an .html file.
        exhibits: taken one by one, so that they need not fit into memory together.
        title: the data set's name.
        about: a sentence below it.
        splits: their names.
        classes: names in label order.
        faults: name of a fault -> its severity.
        clip: do not draw what leaves the pictures.
        skeleton: names of the keypoints, and which of them are joined by a line.

    Raises:
        UserError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shared = {"title": title, "about": about, "splits": splits, "classes": classes, "faults": faults, "clip": clip}
    shared |= {"keypoints": list(skeleton.names), "lines": list(skeleton.lines)}
    try:
        with open(aside, "w", encoding="utf-8") as file:
            _write(file, exhibits, shared)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; make room or choose another place") from None
    finally:
        aside.unlink(missing_ok=True)
    return path.stat().st_size


def _write(file: IO[str], exhibits: Iterable[Exhibit], shared: dict[str, Any]) -> None:
    parts = {kind: (HERE / f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    before, after = parts["html"].replace("/*STYLE*/", parts["css"]).split("<!--DATA-->")
    file.write(before)
    index = []
    for number, exhibit in enumerate(exhibits):
        _block(file, f"image-{number}", _content(exhibit))
        index.append(_entry(exhibit))
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette().tolist()]
    _block(file, "index", {**shared, "colours": colours, "perPage": PER_PAGE, "images": index})
    file.write(after.replace("/*SCRIPT*/", parts["js"]))


def _block(file: IO[str], name: str, value: Any) -> None:
    text = json.dumps(value, separators=(",", ":")).replace("<", r"\u003c")  # nothing in it can end the block
    file.write(f'<script type="application/json" id="{name}">{text}</script>\n')


def _entry(exhibit: Exhibit) -> list[Any]:
    """What the filters need: name, split, labels, sides of the objects' boxes, faults, numbers of missed and false."""
    objects, predictions = exhibit.objects, exhibit.predictions
    sizes = [round(((s.box[2] - s.box[0]) * (s.box[3] - s.box[1])) ** 0.5) for s in objects]
    return [
        exhibit.name,
        exhibit.split,
        [shape.label for shape in objects],
        sizes,
        sorted({fault for fault, _ in exhibit.faults}),
        None if predictions is None else sum(shape.missed for shape in objects),
        None if predictions is None else sum(shape.missed for shape in predictions),
    ]


def _content(exhibit: Exhibit) -> dict[str, Any]:
    jpeg = base64.b64encode(exhibit.jpeg).decode("ascii")
    return {
        "image": f"data:image/jpeg;base64,{jpeg}" if jpeg else "",
        "size": [exhibit.height, exhibit.width],
        "objects": _shapes(exhibit.objects),
        "predictions": None if exhibit.predictions is None else _shapes(exhibit.predictions),
        "faults": exhibit.faults,
    }


def _shapes(shapes: Sequence[Shape]) -> list[list[Any]]:
    """label, colour, x, y, width, height, path, name, crowd, score, missed, faults, keypoints."""
    colours = choose(np.array([shape.box for shape in shapes], np.float64).reshape(-1, 4)).tolist()
    rows: list[list[Any]] = []
    for shape, colour in zip(shapes, colours, strict=True):
        x1, y1, x2, y2 = (round(value, 1) for value in shape.box)
        score = None if shape.score is None else round(shape.score, 3)
        box = [x1, y1, round(x2 - x1, 1), round(y2 - y1, 1)]
        flags = [int(shape.crowd), score, int(shape.missed)]
        points = [point and (round(point[0], 1), round(point[1], 1)) for point in shape.keypoints]
        rows.append([shape.label, colour, *box, shape.path, shape.name, *flags, list(shape.faults), points])
    return rows


def _text(number: int, unit: int) -> str:
    return str(number // unit) if number % unit == 0 else f"{number / unit:g}"
