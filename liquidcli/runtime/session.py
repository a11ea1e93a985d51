"""Conversations on disk: one JSON file per session, and beside it the state that its tokens left in the memory.

    NAME.json    what was said, with which model and options, and the tokens as the model read them
    NAME.state   K and V (`runtime.state`); may be absent, then the text is read anew

Knows files, names and how many are kept. Does not know engines or terminals.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, NotFoundError, UsageError
from ..files import atomic_output

KEPT_STATES = 8
KEPT_STATE_BYTES = 4 << 30
KEPT_UNNAMED = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_BYTES = 1 << 28
_ABANDONED_S = 3600.0  # no state takes that long to write
_MOST_CTX = 1 << 31
_LATEST_S = 1e11  # the year 5138: a calendar has no names for what comes much later


@dataclass
class Session:
    """One conversation, as it is written."""

    name: str
    named: bool = False  # by a person: kept until deleted
    saved_at: float = 0.0  # seconds since the epoch
    model: dict[str, str] = field(default_factory=dict)  # name, path, identity (model_hash), ref as it was typed
    options: dict[str, Any] = field(default_factory=dict)  # of the command line, by the library's names
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    read: dict[str, Any] = field(default_factory=dict)  # Conversation.read_so_far

    @property
    def title(self) -> str:
        return next((turn["content"] for turn in self.turns if turn["role"] == "user"), "")


class Sessions:
    """The folder of all sessions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with contextlib.suppress(OSError):
            folder.chmod(0o700)

    def text_path(self, name: str) -> Path:
        return self._folder / f"{checked(name)}.json"

    def state_path(self, name: str) -> Path:
        return self._folder / f"{checked(name)}.state"

    def exists(self, name: str) -> bool:
        return self.text_path(name).is_file()

    def new_name(self) -> str:
        """The time of day, and a number where that is taken."""
        stem = time.strftime("%Y%m%d-%H%M%S")
        names = (f"{stem}-{n}" if n else stem for n in range(1000))
        return next(name for name in names if not self.exists(name))

    def save(self, session: Session) -> None:
        session.saved_at = time.time()
        text = json.dumps(asdict(session), ensure_ascii=False, separators=(",", ":")) + "\n"
        raw = text.encode("utf-8", "replace")
        with atomic_output(self.text_path(session.name), len(raw), mode=0o600) as part:
            part.write_bytes(raw)

    def load(self, name: str) -> Session:
        """NotFoundError with the names there are; IntegrityError for a file that is no session."""
        path = self.text_path(name)
        if not path.is_file():
            known = ", ".join(self.names()[:8])
            raise NotFoundError(
                f"there is no session {name}", hint=f"there are {known}" if known else "liquid chat begins one"
            )
        return _read(path)

    def names(self) -> list[str]:
        """The latest first."""
        return [path.stem for path in sorted(self._folder.glob("*.json"), key=_changed_ns, reverse=True)]

    def all(self) -> Iterator[Session]:
        """The latest first; broken ones are left out."""
        for name in self.names():
            with contextlib.suppress(IntegrityError, UsageError, OSError):
                yield _read(self.text_path(name))

    def latest(self) -> Session | None:
        return next(iter(self.all()), None)

    def state_bytes(self, name: str) -> int:
        path = self.state_path(name)
        return path.stat().st_size if path.is_file() else 0

    def delete(self, name: str) -> None:
        if not self.exists(name):
            self.load(name)
        self.state_path(name).unlink(missing_ok=True)
        self.text_path(name).unlink()

    def rename(self, old: str, new: str) -> None:
        if self.exists(new):
            raise UsageError(f"there is a session {new} already", hint=f"/sessions delete {new}, or another name")
        if self.state_path(old).is_file():
            self.state_path(old).replace(self.state_path(new))
        if self.exists(old):
            self.text_path(old).replace(self.text_path(new))

    def prune(self) -> None:
        """Keep the last states, as many as fit, and the last unnamed texts; what a killed chat was writing goes."""
        for path in self._folder.glob(".*.part"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        used = 0
        for n, path in enumerate(sorted(self._folder.glob("*.state"), key=_changed_ns, reverse=True)):
            used += path.stat().st_size
            if n >= KEPT_STATES or used > KEPT_STATE_BYTES or not path.with_suffix(".json").is_file():
                path.unlink(missing_ok=True)
        unnamed = [session.name for session in self.all() if not session.named]
        for name in unnamed[KEPT_UNNAMED:]:
            self.delete(name)


def checked(name: str) -> str:
    """A name that is a file's and nothing more."""
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
        like = f"like {near}: " if near else ""
        hint = f"{like}letters, digits, dot, dash and underscore, at most 64"
        raise UsageError(f"{name[:80]!r} is no name for a session", hint=hint)
    return name


def kept_text() -> str:
    return (
        f"kept: the states of the last {KEPT_STATES} sessions, at most {KEPT_STATE_BYTES >> 30} GiB (older ones are"
        f" read anew from their text), the text of the last {KEPT_UNNAMED} and of all that have a name"
    )


def _read(path: Path) -> Session:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too long")
        found = json.loads(path.read_text(encoding="utf-8"))
        session = Session(**{f.name: found[f.name] for f in fields(Session) if f.name in found})
        if not _makes_sense(session):
            raise ValueError("odd content")
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"the session {path} is broken", hint=f"rm {shlex.quote(str(path))}") from error
    session.name = path.stem
    return session


def _makes_sense(session: Session) -> bool:
    """Types only: what the fields say is checked where it is used."""
    if not isinstance(session.model, dict) or not isinstance(session.read, dict):
        return False
    texts = [value for turn in session.turns for value in (turn["role"], turn["content"])]
    return (
        all(isinstance(text, str) for text in [session.name, *texts, *session.model.values()])
        and isinstance(session.system, str | None)
        and isinstance(session.options, dict)
        and isinstance(session.read.get("ends", []), list)
        and type(session.options.get("n_ctx", 0)) is int
        and 0 <= session.options.get("n_ctx", 0) < _MOST_CTX
        and type(session.saved_at) in (int, float)
        and 0 <= session.saved_at < _LATEST_S
        and isinstance(session.named, bool)
    )


def _changed_ns(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
