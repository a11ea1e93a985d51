"""The model a verb was asked for, as a file: fetched with a bar, with what a person should know about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ui.console import out

if TYPE_CHECKING:
    from ..runtime.depth import DepthPolicy


def locate(
    ref: str | None, gates: str | None = None, *, offline: bool = False, depths: Sequence[DepthPolicy] = ()
) -> Path:
    """None is the default model with its gates. Of `depths`, those that it cannot reach are told or refused."""
    from ..hub.resolve import resolve_model

    with out.progress(ref or "default model", None) as bar:
        model = resolve_model(ref, gates=gates, offline=offline, progress=bar.update)
    for note in model.notes:
        out.talk(note)
    for note in depth_notes(model.path, depths):
        out.warn(note)
    return model.path


def depth_notes(path: Path, depths: Sequence[DepthPolicy]) -> list[str]:
    """What becomes of depths that are not a word, before anything is computed; UsageError where one has no meaning."""
    from ..gguf_file import check_loadable, open_gguf

    asked = [depth for depth in depths if depth.kind not in ("auto", "full")]
    if not asked:
        return []
    with open_gguf(path) as f:
        check_loadable(f)
        notes = [depth.resolve_for(f.metadata).note for depth in asked]
    return list(dict.fromkeys(filter(None, notes)))
