"""What a person pointed at: the files below it, read safely, and the images that belong to them."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.image import SUFFIXES, image_size
from mrcnn_cli.errors import UserError

# What people call their splits: a part of a path, or a word of a file's name, a year behind it or not.
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
KEPT_BYTES = 2**28  # of JSON files, whose contents take several times as much memory
# Folders of label maps, whose files are called like the images.
_LABELS = re.compile("label|mask|seg|annot|instance|panoptic|truth|^gt")


class Skipped(Exception):
    """What cannot be read is named as a fault already."""


# What a damaged or foreign file makes a reader raise.
BROKEN = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError, OverflowError)


class Source:
    """A file or a folder with annotations.

    Args:
        path: what the person named.
        images: the folder with the images, where they are not below `path` or beside it.
        skip: a folder that does not belong to the source, though it may lie in it: where results are written.

    Raises:
        UserError: `path` or `images` does not exist.
    """

    def __init__(self, path: Path, images: Path | None = None, skip: Path | None = None):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        if images is not None and not images.is_dir():
            raise UserError(f"{images}: no such folder of images; check --images")
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.images = images
        self.skip = None if skip is None else skip.resolve()
        self._json: dict[Path, Any] = {}
        self._json_bytes = 0

    @cached_property
    def files(self) -> list[Path]:
        """All files below the folder, or the one file, sorted."""
        return list(self._walk(self.path)) if self.path.is_dir() else [self.path]

    def below(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes, such as ".json"."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def pictures(self) -> list[Path]:
        """All files below the folder of images that are called like images, sorted."""
        return self.pictures_in(self.root if self.images is None else self.images)

    def pictures_in(self, folder: Path) -> list[Path]:
        """The files below a folder that are called like images, sorted."""
        files = self.files if folder == self.path else self._walk(folder)
        return [path for path in files if path.suffix.lower() in SUFFIXES]

    def json(self, path: Path) -> Any:
        """The content of a JSON file, which is remembered as long as such files are not too large together.

        Raises:
            UserError: it is none.
        """
        if path not in self._json:
            try:
                data = path.read_bytes()
                content = json.loads(data)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: not JSON: {error}") from None
            self._json_bytes += len(data)
            if self._json_bytes > KEPT_BYTES:
                self._json.clear()
                self._json_bytes = len(data)
            self._json[path] = content
        return self._json[path]

    def split_of(self, path: Path, *, by_name: bool = False) -> str | None:
        """train, val or test, where a folder between the source and `path` is called so, or (`by_name`) the file."""
        try:
            parts = list(path.relative_to(self.root).parts)
        except ValueError:
            parts = list(path.parts[-3:])
        folders, name = parts[:-1], path.stem
        for word in reversed(folders):
            split = split_word(word)
            if split:
                return split
        return next(filter(None, map(split_word, re.split(r"[_\-.\s]", name))), None) if by_name else None

    def find_image(self, name: str, near: Path, split: str | None = None) -> Path | None:
        """The image file that an annotation calls `name`.

        It is looked for beside the annotation, then anywhere below the folder of images; of several with that name the
        one that has most of the path in common, or lies in a folder of the split.

        Args:
            name: a path or only a name, with or without a suffix.
            near: the folder of the annotation file.
            split: of the annotation.
        """
        name = name.replace("\\", "/")
        places = [near, self.root] if self.images is None else [self.images, near]
        wanted = PurePosixPath(name)
        if wanted.suffix.lower() in SUFFIXES:
            for place in places:
                if (place / name).is_file():
                    return place / name
        found = self._by_name.get(wanted.name) or self._by_stem.get(wanted.name, [])
        if len(found) > 1:
            scores = [
                (_common_tail(path, wanted), self.split_of(path) == split, not _LABELS.search(path.parent.name.lower()))
                for path in found
            ]
            best = max(scores)
            found = [path for path, score in zip(found, scores, strict=True) if score == best]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((path.name, path) for path in self.pictures)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped((path.stem, path) for path in self.pictures)

    def _walk(self, root: Path) -> Iterator[Path]:
        seen = {self.skip}  # links may lead back
        for folder, names, files in os.walk(root, followlinks=True):
            names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
            where = Path(folder).resolve()
            if where in seen:
                names.clear()
                continue
            seen.add(where)
            yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


class Reading:
    """One reading of a source by one format.

    Attributes:
        source: what is read.
        given: the classes that the person named, in label order; empty where none were.
        classes: names in label order, where the source has an order; filled by the reader.
        categories: class -> what else COCO's list of categories says about it.
        faults: what could not be read, a line each that begins with the file.
        notes: what was left out or changed because it cannot be held, counted.
    """

    def __init__(self, source: Source, options: Any = None, given: Iterable[str] = ()):
        self.source = source
        self.options = options
        self.given = list(given)
        self.classes: list[str] = []
        self.categories: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.missing: set[Path] = set()
        self.notes = Repairs()

    @property
    def unnamed(self) -> str:
        """The class of objects of a source that names none: the one the person gave, else "object"."""
        return self.given[0] if len(self.given) == 1 else "object"

    @contextmanager
    def guard(self, path: Path, where: str = "") -> Iterator[None]:
        """What goes wrong with a file within becomes a fault that names it; the rest goes on."""
        try:
            yield
        except Skipped:
            pass
        except UserError as error:
            text = str(error)
            self.faults.append(text if text.startswith(str(path)) else f"{path}: {where}{text}")
        except BROKEN as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            self.faults.append(f"{path}: {where}{reason}")

    def image(self, name: str, near: Path, split: str | None = None) -> Path:
        """The image of that name; where there is none, the path at which it would be, and a fault."""
        found = self.source.find_image(name, near, split)
        if found is not None:
            return found
        path = (self.source.images or near) / name.replace("\\", "/")
        if path not in self.missing:
            self.missing.add(path)
            self.faults.append(f"{path}: no such image, or several that could be it; give their folder with --images")
        return path

    def size(self, path: Path) -> tuple[int, int]:
        """(height, width) of an image; UserError where it cannot be read, Skipped where it is known to be missing."""
        if path in self.missing:
            raise Skipped
        return image_size(path)


def split_word(word: str) -> str | None:
    """train, val or test, if that is what a word such as "train2017" or "valid" means."""
    return _SPLITS.get(re.sub(r"\d{4}$", "", word.lower()))


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; entities, with which a small file can fill the memory, are refused.

    Raises:
        UserError: it cannot be read, is no XML or declares entities.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise UserError(f"{path}: declares XML entities, which annotations do not need; remove them")

    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except expat.ExpatError as error:
        raise UserError(f"{path}: not XML: {error}") from None
    return builder.close()


def number(text: str | None) -> float:
    """A number written in any way: "12", "12.5" or "12,5".

    Raises:
        ValueError: it is none, or not finite.
    """
    value = float((text or "").strip().replace(",", "."))
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _common_tail(path: Path, wanted: PurePosixPath) -> int:
    count = 0
    for mine, other in zip(reversed(path.parts), reversed(wanted.parts), strict=False):
        if mine != other:
            break
        count += 1
    return count


def _grouped(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for key, path in pairs:
        found.setdefault(key, []).append(path)
    return found
