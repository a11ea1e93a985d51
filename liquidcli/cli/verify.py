"""`liquid verify`: are stored models still what was fetched?"""

from __future__ import annotations

from ..errors import IntegrityError
from ..ui.console import out
from .options import Json, Quiet, Refs

_WORDS = {True: "ok", False: "BROKEN", None: "unknown"}


def verify(refs: Refs = None, json: Json = False, quiet: Quiet = False) -> None:
    """Check the sha256 of stored models.

    Without a REF: of all.
    """
    from ..hub import housekeeping
    from ..hub.store import stored_models

    out.configure(json=json, quiet=quiet)
    models = [model for ref in refs for model in housekeeping.find(ref)] if refs else stored_models()
    with out.progress("verifying", None) as bar:
        results = list(housekeeping.verify(models, bar.update))
    if json:
        out.json([result.as_json() for result in results])
    elif not quiet:
        out.table(["NAME", "STATE", "SHA256"], [(r.name, _WORDS[r.ok], r.sha256[:16]) for r in results])
    broken = [result for result in results if result.ok is False]
    if broken:
        names = " ".join(dict.fromkeys(result.name for result in broken))
        of_the_hub = all("/" in result.name for result in broken)
        hint = f"liquid pull {names}" if of_the_hub else f"liquid rm {names}, then liquid pull again"
        paths = ", ".join(str(result.path) for result in broken)
        raise IntegrityError(f"not what was fetched: {paths}", hint=hint)
