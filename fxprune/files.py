"""Folders and files that are complete or not there."""

from __future__ import annotations

__all__ = ["make_folder", "written"]

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import ArgumentError


def make_folder(out: str | os.PathLike[str]) -> Path:
    """Make a folder, unless it is there, so that a wrong path is known before the work is done.

    Args:
        out: The folder.

    Raises:
        ArgumentError: It cannot be made, or is a file.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"the folder {str(folder)!r} for the results cannot be made: {error}") from error
    return folder


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, which it becomes once it is complete.

    It is there from the start, so that a wrong path is known before the work is done.

    Raises:
        ArgumentError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            part.touch()
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(f"the file {str(path)!r} cannot be written: {error}") from error
