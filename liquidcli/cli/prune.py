"""`liquid prune`: delete what nobody needs any more."""

from __future__ import annotations

from ..errors import UsageError
from ..ui.console import out
from .options import DryRun, Json, Quiet, Yes


def prune(dry_run: DryRun = False, yes: Yes = False, json: Json = False, quiet: Quiet = False) -> None:
    """Delete files nobody needs any more.

    Downloads broken off, versions a newer one replaced, combined files whose base or gate pack is gone or another.
    """
    from ..amounts import size_text
    from ..hub import housekeeping

    out.configure(json=json, quiet=quiet)
    found = housekeeping.garbage()
    total = size_text(sum(item.size_bytes for item in found))
    if found and not json:
        out.table(["FILE", ">SIZE", "WHY"], [(item.path, size_text(item.size_bytes), item.why) for item in found])
    if found and not dry_run:
        if not yes and not out.confirm(f"delete {len(found)} files ({total})?"):
            raise UsageError("nothing was deleted", hint="liquid prune -y deletes without asking")
        housekeeping.prune(found)
    if json:
        out.json({"dry_run": dry_run, "files": [item.as_json() for item in found]})
    else:
        out.talk(f"{total} {'would be ' if dry_run else ''}freed" if found else "nothing to delete")
