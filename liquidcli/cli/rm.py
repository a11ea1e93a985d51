"""`liquid rm`: delete stored models or aliases."""

from __future__ import annotations

from typing import Annotated

import typer

from ..ui.console import out
from .options import Json, Quiet, complete_refs


def rm(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", autocompletion=complete_refs)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete stored models, downloads broken off, or aliases.

    The name of a repository without :TAG means all its quantizations.
    """
    from ..amounts import size_text
    from ..hub.housekeeping import find, partials_of, remove, remove_partials
    from ..hub.store import aliases, remove_alias

    out.configure(json=json, quiet=quiet)
    names = [ref for ref in dict.fromkeys(refs) if ref in aliases()]
    others = [ref for ref in dict.fromkeys(refs) if ref not in names]
    parts = {ref: partials_of(ref) for ref in others}
    models = [model for ref in others for model in find(ref, or_none=bool(parts[ref]))]
    for name in names:
        remove_alias(name)
    broken_off = [part for found in parts.values() for part in found]
    freed_bytes = remove_partials(broken_off) + remove(models)
    removed = [*names, *(model.name for model in models), *(f"a part of {p.repo_id}/{p.path}" for p in broken_off)]
    if json:
        out.json({"removed": removed, "freed_bytes": freed_bytes})
    else:
        out.talk(f"removed {', '.join(removed)}; {size_text(freed_bytes)} freed")
