"""Makes the prepared tree: archive, patches in order, our files, generated files. A tree is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from . import BuildError, archive, series, unidiff
from .pin import HOME, Pin

MARKER = ".liquid-prepared.json"  # in every tree of ours: stamp, touched files
INIT = "llama_cpp/__init__.py"
STAMP_MODULE = "llama_cpp/_liquid_stamp.py"
STAMP_HEADER = f"{series.VENDOR}/src/liquid-stamp.h"


def prepare(pin: Pin, out: Path, source: Path | None = None, home: Path = HOME) -> str:
    """Makes or renews the tree `out` and returns its stamp. Files that did not change keep their times."""
    stamp = series.stamp(pin, home)
    old = read_marker(out)
    if old and not old["pristine"]:
        raise BuildError(f"{out}: a work tree with commits of its own; export or remove it first")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        touched = fill(pin, part, source, home)
        write_marker(part, stamp, touched)
        _keep_times(out, part, set(touched) | set(old["touched"] if old else ()))
        if old:
            shutil.rmtree(out)
        elif out.exists():
            out.rmdir()  # read_marker let only an empty folder pass
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return stamp


def fill(pin: Pin, tree: Path, source: Path | None, home: Path) -> list[str]:
    """Everything in order into an empty folder; returns the paths that are not upstream's own bytes."""
    patches = series.read_patches(home / "patches")
    archive.unpack(archive.obtain(pin, source), pin, tree)
    touched = set_version(tree, pin) + apply_all(pin, tree, patches)
    return touched + add_sources(tree, home) + write_stamp(tree, pin, home)


def apply_all(pin: Pin, tree: Path, patches: list[unidiff.Patch], relocate: bool = False) -> list[str]:
    touched = []
    for patch in patches:
        try:
            touched += unidiff.apply(patch, tree, relocate)
        except BuildError as error:
            raise BuildError(f"patch does not fit {pin.archive} ({pin.commit}): {error}") from None
    return touched


def set_version(tree: Path, pin: Pin) -> list[str]:
    """Upstream's version line is the one number that says whose build this is."""
    path = tree / INIT
    text = path.read_text(encoding="utf-8")
    line = f'__version__ = "{pin.version}"'
    if text.count(line) != 1:
        raise BuildError(f"{INIT}: expected the line {line} once")
    path.write_text(text.replace(line, f'__version__ = "{pin.full_version}"'), encoding="utf-8")
    return [INIT]


def add_sources(tree: Path, home: Path, link: bool = False) -> list[str]:
    """Our whole files at their places; none may take the place of a file of upstream."""
    placed = series.sources(home / "src")
    for name, path in placed.items():
        target = tree / name
        if target.exists() or target.is_symlink():
            raise BuildError(f"src/{path.relative_to(home / 'src')}: upstream has a file {name} already")
        target.symlink_to(path) if link else shutil.copyfile(path, target)
    return list(placed)


def write_stamp(tree: Path, pin: Pin, home: Path) -> list[str]:
    """The stamp for the library and the same stamp for the Python package beside it."""
    stamp = series.stamp(pin, home)
    header = f'#pragma once\n\n#define LIQUID_BUILD_STAMP "{stamp}"\n'
    module = f'"""Which build this package is; the library beside it must say the same."""\n\n' \
             f'STAMP = "{stamp}"\nVERSION = "{pin.full_version}"\n'
    for name, text in ((STAMP_HEADER, header), (STAMP_MODULE, module)):
        (tree / name).write_text(text, encoding="utf-8")
    return [STAMP_HEADER, STAMP_MODULE]


def write_marker(tree: Path, stamp: str, touched: list[str], pristine: bool = True) -> None:
    record = {"stamp": stamp, "touched": sorted(set(touched)), "pristine": pristine}
    (tree / MARKER).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_marker(tree: Path) -> dict | None:
    """The record of an earlier tree, None where there is nothing; an error for a folder that is not ours to replace."""
    if not tree.exists():
        return None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return json.loads((tree / MARKER).read_text(encoding="utf-8"))
    if not tree.is_dir() or any(tree.iterdir()):
        raise BuildError(f"{tree}: exists and is not a tree made by prepare.py")
    return None


def _keep_times(old: Path, new: Path, names: set[str]) -> None:
    """A build tree compiled from `old` then sees in `new` exactly the files that changed."""
    for name in names:
        before, after = old / name, new / name
        if not after.exists():
            continue
        if before.is_file() and before.read_bytes() == after.read_bytes():
            times = before.stat()
            os.utime(after, ns=(times.st_atime_ns, times.st_mtime_ns))
        else:
            os.utime(after)
