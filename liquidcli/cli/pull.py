"""`liquid pull`: fetch models; their paths on stdout, nothing else."""

from __future__ import annotations

from typing import Any

from ..ui.console import out
from .options import DryRun, Json, Quiet, Refs


def pull(refs: Refs = None, dry_run: DryRun = False, json: Json = False, quiet: Quiet = False) -> None:
    """Fetch models and print where they lie. Without a REF: the default model, with its gates.

    REF is owner/name[:TAG] on the hub (TAG: a quantization; Q4_K_M where there is one), hf.co/..., hf://..., or the
    https address of a GGUF file. What was broken off goes on where it stopped.
    """
    out.configure(json=json, quiet=quiet)
    wanted: list[str | None] = [*refs] if refs else [None]
    results = [_planned(ref) if dry_run else _pulled(ref) for ref in wanted]
    if json:
        out.json(results[0] if len(results) == 1 else results)
    else:
        for result in results:
            _show(result)


def _pulled(ref: str | None) -> dict[str, Any]:
    from ..hub.resolve import resolve_file, resolve_model

    with out.progress(ref or "default model", None) as bar:
        if ref is None:
            model = resolve_model(None, progress=bar.update)
            path, notes = model.path, model.notes
        else:
            path, notes = resolve_file(ref, progress=bar.update, update=True), ()
    for note in notes:
        out.talk(note)
    return {"ref": ref, "path": str(path.absolute()), "size_bytes": path.stat().st_size}


def _planned(ref: str | None) -> dict[str, Any]:
    from ..hub.resolve import plan_pull

    return {"ref": ref, **plan_pull(ref)}


def _show(result: dict[str, Any]) -> None:
    from ..amounts import size_text

    if "path" in result:
        out.data(result["path"])
        return
    out.table(["FILE", ">SIZE"], [(file["path"], size_text(file["size_bytes"])) for file in result["files"]])
    out.talk(f"{size_text(result['missing_bytes'])} to fetch")
