"""One model in several files: which tensors go where, what the files are called, and that all are there or none.

Names, keys and the rule are upstream's: a file is full when the next tensor would exceed its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from liquidcli.errors import UsageError
from liquidcli.files import atomic_output, check_space

from . import fields
from .fields import Field
from .tensors import Output

MAX_FILES = 999


def split_outputs(outputs: Sequence[Output], max_bytes: int | None) -> list[tuple[Output, ...]]:
    """`max_bytes` of tensors to a file; a tensor that is larger has one to itself. None: one file."""
    files: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        if max_bytes and files[-1] and filled + output.size_bytes > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(output)
        filled += output.size_bytes
    if len(files) > MAX_FILES:
        raise UsageError(f"files of {max_bytes} bytes would be {len(files)}, {MAX_FILES} at most are possible")
    return [tuple(file) for file in files]


def split_names(out: Path, count: int) -> list[Path]:
    """`m.gguf`, or m-00001-of-00003.gguf and so on."""
    if count == 1:
        return [out]
    stem = out.name.removesuffix(".gguf")
    return [out.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def split_fields(metadata: Sequence[Field], number: int, files: Sequence[Sequence[Output]]) -> Sequence[Field]:
    """The keys of one file: the first has the model's, each tells its place."""
    if len(files) == 1:
        return metadata
    place = [
        fields.u16("split.no", number),
        fields.u16("split.count", len(files)),
        fields.i32("split.tensors.count", sum(map(len, files))),
    ]
    return [*metadata, *place] if number == 0 else place


@contextlib.contextmanager
def atomic_outputs(paths: Sequence[Path], size_bytes: int) -> Iterator[list[Path]]:
    """`.part` paths as `atomic_output` gives them; the first file, by which the model is named, appears last."""
    if paths[0].parent.is_dir():
        check_space(paths[0].parent, size_bytes)
    own: dict[Path, int] = {}
    try:
        with contextlib.ExitStack() as stack:
            parts = [stack.enter_context(atomic_output(path)) for path in paths]
            own = {path: part.stat().st_ino for path, part in zip(paths, parts, strict=True)}
            yield parts
    except BaseException:
        for path, inode in own.items():
            if path.exists() and path.stat().st_ino == inode:
                path.unlink()
        raise
