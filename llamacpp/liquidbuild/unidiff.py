"""A strict applier of unified diffs. Knows text and line numbers; no fuzz, no offset, no guess.

Only existing files are changed: what is new belongs into whole files of ours, so a patch that creates, deletes, renames
or changes the mode of a file is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from . import BuildError

HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@$")
NO_NEWLINE = "\\ No newline at end of file"


@dataclass
class Hunk:
    old_start: int  # 1-based line in the file before this patch
    new_start: int
    old: list[str] = field(default_factory=list)  # lines that must be there
    new: list[str] = field(default_factory=list)  # lines that take their place


@dataclass
class FilePatch:
    path: str
    hunks: list[Hunk] = field(default_factory=list)


@dataclass
class Patch:
    name: str
    message: str  # the free text before the first file: subject, empty line, body
    files: list[FilePatch]


def parse(name: str, text: str) -> Patch:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    message = "\n".join(lines[:first]).strip()
    if not message:
        raise BuildError(f"{name}: a patch begins with its reason, a subject line and a body")
    files, at = [], first
    while at < len(lines):
        file, at = _parse_file(name, lines, at)
        files.append(file)
    if not files:
        raise BuildError(f"{name}: no `diff --git` line, so nothing to apply")
    return Patch(name, message, files)


def _parse_file(name: str, lines: list[str], at: int) -> tuple[FilePatch, int]:
    match = re.fullmatch(r"diff --git a/(\S+) b/(\S+)", lines[at])
    if not match or match[1] != match[2]:
        raise BuildError(f"{name}:{at + 1}: expected `diff --git a/PATH b/PATH` with one path")
    path = safe_path(name, match[1])
    if lines[at + 1 : at + 3] != [f"--- a/{path}", f"+++ b/{path}"]:
        raise BuildError(f"{name}:{at + 2}: a patch changes lines of existing files only; expected `--- a/{path}` and "
                         f"`+++ b/{path}`")
    file, at = FilePatch(path), at + 3
    while at < len(lines) and lines[at].startswith("@@"):
        hunk, at = _parse_hunk(name, lines, at)
        file.hunks.append(hunk)
    if not file.hunks or (at < len(lines) and not lines[at].startswith("diff --git ")):
        raise BuildError(f"{name}:{at + 1}: expected a hunk that begins with `@@ -line,count +line,count @@`")
    return file, at


def _parse_hunk(name: str, lines: list[str], at: int) -> tuple[Hunk, int]:
    match = HUNK.match(lines[at])
    if not match:
        raise BuildError(f"{name}:{at + 1}: expected `@@ -line,count +line,count @@` and nothing after it")
    begin, old_start, old_count, new_start, new_count = at, *(int(group or 1) for group in match.groups())
    hunk, at = Hunk(old_start, new_start), at + 1
    while at < len(lines) and (len(hunk.old) < old_count or len(hunk.new) < new_count):
        mark, line = lines[at][:1], lines[at][1:]
        if mark not in (" ", "-", "+"):
            break
        if mark != "+":
            hunk.old.append(line)
        if mark != "-":
            hunk.new.append(line)
        at += 1
    if (len(hunk.old), len(hunk.new)) != (old_count, new_count):
        raise BuildError(f"{name}:{begin + 1}: the hunk's line counts do not match its lines")
    if at < len(lines) and lines[at] == NO_NEWLINE:
        raise BuildError(f"{name}:{at + 1}: changes of a last line without a newline are not supported")
    if not hunk.old:
        raise BuildError(f"{name}:{begin + 1}: a hunk needs at least one line of context to find its place")
    return hunk, at


def safe_path(name: str, path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or {"..", ".", ".git"} & set(path.split("/")):
        raise BuildError(f"{name}: {path!r} does not lie inside the tree")
    return path


def apply(patch: Patch, tree: Path, relocate: bool = False) -> list[str]:
    """Applies all files of a patch or none; returns the paths changed. `relocate`: see `place`."""
    results = {}
    for file in patch.files:
        target = tree / file.path
        if not target.is_file() or target.is_symlink():
            raise BuildError(f"{patch.name}: {file.path}: no such file in the tree")
        if file.path in results:
            raise BuildError(f"{patch.name}: {file.path}: named twice")
        results[file.path] = patched(patch.name, file, target.read_bytes().decode("utf-8", "surrogateescape"), relocate)
    for path, text in results.items():
        (tree / path).write_bytes(text.encode("utf-8", "surrogateescape"))
    return list(results)


def patched(name: str, file: FilePatch, text: str, relocate: bool = False) -> str:
    """The file's text after its hunks; an error that names patch, file and line if one does not fit."""
    lines = text.split("\n")
    shift = 0  # lines added so far by earlier hunks
    done = 0  # end of the last hunk, in the new text
    for hunk in file.hunks:
        where = f"{name}: {file.path}:{hunk.old_start}"
        at = place(where, lines, hunk, shift, done, relocate)
        lines[at : at + len(hunk.old)] = hunk.new
        done, shift = at + len(hunk.new), at - (hunk.old_start - 1) + len(hunk.new) - len(hunk.old)
    return "\n".join(lines)


def place(where: str, lines: list[str], hunk: Hunk, shift: int, done: int, relocate: bool) -> int:
    """The index at which a hunk applies. With `relocate` (a version bump) the one place where its lines occur."""
    at = hunk.old_start - 1 + shift
    if at >= done and lines[at : at + len(hunk.old)] == hunk.old and (relocate or at == hunk.new_start - 1):
        return at
    if lines[hunk.new_start - 1 : hunk.new_start - 1 + len(hunk.new)] == hunk.new:
        raise BuildError(f"{where}: already applied")
    if not relocate:
        raise BuildError(f"{where}: the file does not have the lines this hunk expects")
    size = len(hunk.old)
    places = [i for i in range(done, len(lines) - size + 1) if lines[i : i + size] == hunk.old]
    if len(places) != 1:
        raise BuildError(f"{where}: its lines occur {len(places)} times in the file, so the hunk must be moved by hand")
    return places[0]
