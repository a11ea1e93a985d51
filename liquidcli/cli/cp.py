"""`liquid cp`: a second name for a model; no byte is copied."""

from __future__ import annotations

from typing import Annotated

import typer

from ..ui.console import out
from .options import Json, Quiet, complete_refs


def cp(
    ref: Annotated[str, typer.Argument(metavar="REF", autocompletion=complete_refs)],
    alias: Annotated[str, typer.Argument(metavar="ALIAS")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give a model another name."""
    from ..hub.resolve import name_alias

    out.configure(json=json, quiet=quiet)
    target = name_alias(ref, alias)
    if json:
        out.json({"alias": alias, "target": target})
    else:
        out.talk(f"{alias} is now {target}")
