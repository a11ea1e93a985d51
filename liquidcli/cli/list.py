"""`liquid list`: the models on this machine."""

from __future__ import annotations

import time

from ..ui.console import out
from .options import Json, Quiet


def list_(json: Json = False, quiet: Quiet = False) -> None:
    """List the models on this machine.

    Those in the hub's cache, whoever fetched them, those of our own, and aliases.
    """
    from ..amounts import age_text, size_text
    from ..hub.store import aliases, stored_models

    out.configure(json=json, quiet=quiet)
    models, names = stored_models(), aliases()
    if json:
        known_as = {model.name: [alias for alias, target in names.items() if target == model.name] for model in models}
        out.json([{**model.as_json(), "aliases": known_as[model.name]} for model in models])
    elif quiet:
        for name in [*(model.name for model in models), *names]:
            out.data(name)
    elif not models and not names:
        out.talk("no models yet; liquid pull fetches the default one")
    else:
        now = time.time()
        rows = [(model.name, size_text(model.size_bytes), age_text(now - model.modified)) for model in models]
        out.table(
            ["NAME", ">SIZE", "MODIFIED"], rows + [(f"{name} = {target}", "", "") for name, target in names.items()]
        )
