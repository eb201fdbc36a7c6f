"""Files of a run, written so that a crash or a full disk loses nothing."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mrcnn_cli.errors import UserError


def write_bytes(
    path: Path, data: bytes | Iterable[bytes | memoryview], *, durable: bool = True, former: Path | None = None
) -> None:
    """`data` as a file, whole or not at all: a temporary file beside it, then a rename.

    Args:
        path: the file.
        data: its content, or the pieces of it.
        durable: wait until it is on the disk, so that it outlives a power failure; for thousands of small files that
            can be made again, that takes longer than the work.
        former: the name that what lay at `path` before gets once the new content is on the disk.

    Raises:
        UserError: the folder is not writable or the disk is full; what lay at `path` before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if former is not None and path.exists():
            os.replace(path, former)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; earlier files are untouched - "
            "make room or choose another folder with --out"
        ) from None


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left of `write_bytes` in a folder."""
    for aside in folder.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """A folder, with its parents, that files can be written to.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror}; choose another folder with --out") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written: permission denied; choose another folder with --out")


def append_row(path: Path, row: Mapping[str, Any], *, durable: bool = False) -> None:
    """One line more in a file of JSON lines; where it is durable, that line and all before outlive a power failure."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; make room, then go on with --resume") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a line cut short by a crash is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While this is open, the run in a folder is this process's: others see that, and cannot train it too.

    The kernel keeps the claim, and drops it when the process ends in whichever way.

    Raises:
        UserError: another process has it.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(place)
        raise UserError(f"{folder}: another process trains this run; wait for it, or choose another --out") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_UN)  # in forked processes too
        os.close(place)


def is_claimed(folder: Path) -> bool:
    """Whether a process trains the run in this folder."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(place)
    return False
