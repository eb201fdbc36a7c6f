"""The file of a COCO data set: its lists are there and hold objects; what these say is another module's matter."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrcnn_cli.errors import UserError

NEEDED = "COCO needs an object with the lists 'images', 'annotations' and 'categories'"
_WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@contextmanager
def without_collecting() -> Iterator[None]:
    """Else Python's search for garbage walks an annotation file's millions of values again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_content(path: Path) -> dict[str, Any]:
    """What a COCO file holds: its lists of objects are there, what these hold is not looked at.

    Raises:
        UserError: the file cannot be read or is not COCO.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a COCO JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; {NEEDED}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {_kind(content)} at the top; {NEEDED}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise UserError(f"{path}: has no '{key}' (but {some(list(content)) or 'nothing'}); {NEEDED}")
        if not isinstance(content[key], list):
            raise UserError(f"{path}: '{key}' is {_kind(content[key])}; {NEEDED}")
        for place, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise UserError(f"{path}: {key}[{place}] is {_kind(entry)} instead of an object; {NEEDED}")
    return content


def some(names: Sequence[str]) -> str:
    """The first five of them, in quotes, and how many more there are."""
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _kind(value: Any) -> str:
    return _WORDS[type(value)]
