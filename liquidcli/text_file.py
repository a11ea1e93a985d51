"""A text that a person named by its file.

Knows what makes a file no text. Does not know what the text is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import NotFoundError, UsageError

_HEAD_BYTES = 1 << 16


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """UTF-8, with replacement characters for other bytes; refused where it is binary or longer than `most_bytes`.

    As elsewhere, a NUL byte in its beginning makes a file binary.
    """
    if not path.exists():
        raise NotFoundError(f"there is no file {path}", hint=f"ls {path.parent} tells what there is")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, a text file was expected", hint=f"ls {path} tells what is in it")
    with path.open("rb") as file:
        raw = file.read(_HEAD_BYTES)
        if b"\0" in raw:
            raise UsageError(f"{path} is no text but binary", hint="a text file is expected, in UTF-8")
        raw += file.read() if most_bytes is None else file.read(max(0, most_bytes + 1 - len(raw)))
    return bounded(raw, str(path), most_bytes)


def json_lines(path: Path, most: int | None = None) -> Iterator[tuple[int, Any]]:
    """The values in a .jsonl file's first `most` lines, with the lines' numbers from 1 on; empty lines hold none.

    A line ends with a line feed alone: texts in JSON may hold the other separators that Unicode has.
    """
    for number, line in enumerate(read_text(path).split("\n")[:most], 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: this is no JSON") from error


def bounded(raw: bytes, what: str, most_bytes: int | None) -> str:
    if most_bytes is not None and len(raw) > most_bytes:
        raise UsageError(
            f"{what} is longer than {most_bytes >> 20} MiB, no context holds that", hint="give a part of it"
        )
    return raw.decode("utf-8", "replace")
