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
    """Delete stored models, or aliases.

    The name of a repository without :TAG means all its quantizations.
    """
    from ..amounts import size_text
    from ..hub.housekeeping import find, remove
    from ..hub.store import aliases, remove_alias

    out.configure(json=json, quiet=quiet)
    names = [ref for ref in refs if ref in aliases()]
    models = [model for ref in refs if ref not in names for model in find(ref)]
    for name in names:
        remove_alias(name)
    freed_bytes = remove(models)
    removed = [*names, *(model.name for model in models)]
    if json:
        out.json({"removed": removed, "freed_bytes": freed_bytes})
    else:
        out.talk(f"removed {', '.join(removed)}; {size_text(freed_bytes)} freed")
