"""`liquid list`: the models on this machine."""

from __future__ import annotations

import time
from typing import Annotated, Any

from ..ui.console import out
from .options import Json, Quiet, option

All = Annotated[bool, option("-a", "--all", help="Downloads that were broken off too.")]


def list_(every: All = False, json: Json = False, quiet: Quiet = False) -> None:
    """List the models on this machine.

    Those in the hub's cache, whoever fetched them, those of our own, and aliases.
    """
    from ..hub.cache import partials
    from ..hub.store import aliases, stored_models

    out.configure(json=json, quiet=quiet)
    models, names, parts = stored_models(), aliases(), [_told(partial) for partial in partials()]
    if json:
        known_as = {model.name: [alias for alias, target in names.items() if target == model.name] for model in models}
        told = [{**model.as_json(), "aliases": known_as[model.name]} for model in models]
        out.json([*told, *(parts if every else ())])
    elif quiet:
        for name in [*(model.name for model in models), *names]:
            out.data(name)
    else:
        _show(models, names, parts, every)


def _show(models: list[Any], names: dict[str, str], parts: list[dict[str, Any]], every: bool) -> None:
    from ..amounts import age_text, size_text

    now = time.time()
    rows = [(model.name, size_text(model.size_bytes), age_text(now - model.modified)) for model in models]
    rows += [(f"{name} = {target}", "", "") for name, target in names.items()]
    if every:
        rows += [(part["name"], _progress(part), age_text(now - part["modified"])) for part in parts]
    elif parts:
        which = parts[0]["name"] if len(parts) == 1 else f"{len(parts)} downloads"
        out.talk(f"{which} not fetched to the end: liquid list --all; pull goes on with it, liquid prune deletes it")
    if rows:
        out.table(["NAME", ">SIZE", "MODIFIED"], rows)
    elif not parts:
        out.talk("no models yet; liquid pull fetches the default one")


def _told(partial: Any) -> dict[str, Any]:
    stat = partial.part.stat()
    told = {"name": f"{partial.repo_id}/{partial.path}", "path": str(partial.part), "size_bytes": partial.size_bytes}
    return {**told, "partial": True, "done_bytes": stat.st_size, "modified": stat.st_mtime, "source": "hub"}


def _progress(part: dict[str, Any]) -> str:
    from ..amounts import size_text

    return f"{part['done_bytes'] / max(part['size_bytes'], 1):.0%} of {size_text(part['size_bytes'])}"
