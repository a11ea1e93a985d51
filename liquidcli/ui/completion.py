"""What Tab offers in a chat: commands, and what may follow them.

Knows the shape of a line. The words come from the commands' own tables.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Source = Callable[[str], Iterable[str]]  # from what stands there to what could stand there


def candidates(line: str, words: Sequence[str], sources: Mapping[str, Source]) -> tuple[str, list[str]]:
    """What the end of the line is, and what it could become. Only lines that begin with a slash are commands."""
    if not line.startswith("/") or "\n" in line:
        return "", []
    for command, source in sources.items():
        if line.startswith(f"{command} "):
            begun = line[len(command) + 1 :].lstrip()
            return begun, sorted(set(source(begun)))
    return line, sorted({word for word in words if word.startswith(line)})


def typed_path(text: str) -> Path:
    """With a home folder for its tilde; what begins with the tilde of nobody stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises there


def files(begun: str) -> list[str]:
    """Files and folders that begin like this; folders end with a slash."""
    folder, _, name = begun.rpartition("/")
    at = typed_path(folder or ("/" if begun.startswith("/") else "."))
    found: list[str] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(at):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                found.append(begun[: len(begun) - len(name)] + entry.name + ("/" if entry.is_dir() else ""))
    return [path for path in found if path.isprintable()]


def completer(words: Sequence[str], sources: Mapping[str, Source]):
    """For prompt_toolkit."""
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document, complete_event):
            begun, found = candidates(document.text_before_cursor, words, sources)
            for word in found:
                yield Completion(word, start_position=-len(begun))

    return Commands()
