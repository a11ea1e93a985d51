"""The model a verb was asked for, as a file: fetched with a bar, with what a person should know about it."""

from __future__ import annotations

from pathlib import Path

from ..ui.console import out


def locate(ref: str | None, gates: str | None = None, *, offline: bool = False) -> Path:
    """None is the default model with its gates."""
    from ..hub.resolve import resolve_model

    with out.progress(ref or "default model", None) as bar:
        model = resolve_model(ref, gates=gates, offline=offline, progress=bar.update)
    for note in model.notes:
        out.talk(note)
    return model.path
