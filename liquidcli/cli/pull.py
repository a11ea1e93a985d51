"""`liquid pull`: fetch models; their paths on stdout, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..errors import UsageError
from ..ui.console import out
from .options import DryRun, Json, Offline, Quiet, Refs, Revision, option

Include = Annotated[
    list[str] | None,
    option("--include", metavar="PATTERN", help="Fetch the files like this, and print their folder. Repeatable."),
]
_ASKED_FROM_BYTES = 1 << 28  # a model smaller than this is fetched without asking first whether it fits


def pull(
    refs: Refs = None,
    revision: Revision = None,
    include: Include = None,
    offline: Offline = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch models and print where they lie. Without a REF: the default model, with its gates.

    REF is owner/name[:TAG] on the hub (TAG: a quantization; Q4_K_M where there is one), hf.co/..., hf://..., or the
    https address of a GGUF file; REF+gates adds the gates that belong to it. What was broken off goes on where it
    stopped. --dry-run tells sizes and what fits into memory.
    """
    out.configure(json=json, quiet=quiet)
    if not all(refs or ()):
        raise UsageError("an empty name was given", hint="liquid pull alone fetches the default model")
    wanted = [_at(ref, revision) for ref in refs] if refs else [None]
    if (include or revision) and not refs:
        raise UsageError("--include and --revision need a repository", hint="liquid pull owner/name --include '*.json'")
    if include:
        results = (_folder(str(ref), tuple(include)) for ref in wanted)
    else:
        results = (_planned(ref) if dry_run else _pulled(ref, offline) for ref in wanted)
    if json:
        told = list(results)
        out.json(told[0] if len(told) == 1 else told)
    else:
        for result in results:  # as they come: what is here stays told when a later one fails
            _show(result)


def _at(ref: str, revision: str | None) -> str:
    """The reference with the revision in it, where a person may write it."""
    if revision is None:
        return ref
    from ..hub.refs import GATES_SUFFIX, parse_ref, split_gates

    name, with_gates = split_gates(ref)
    found = parse_ref(name)
    if found.kind != "hub" or found.revision not in ("main", revision):
        raise UsageError(f"--revision does not go with {ref}", hint=f"liquid pull owner/name@{revision}")
    rest = f"/{found.file}" if found.file else f":{found.tag}" if found.tag else ""
    return f"hf.co/{found.repo_id}@{revision}{rest}{GATES_SUFFIX if with_gates else ''}"


def _pulled(ref: str | None, offline: bool) -> dict[str, Any]:
    from ..hub.refs import split_gates
    from ..hub.resolve import resolve_file, resolve_model

    name, with_gates = split_gates(ref) if ref else (None, False)
    notes: tuple[str, ...] = ()
    with out.progress(ref or "default model", None) as bar:
        if name is not None:
            before = _here(name)
            path = resolve_file(name, offline=offline, progress=bar.update, update=True, planned=_warn_if_too_big)
            if before and before != path and before.resolve() != path.resolve():
                notes = (f"a newer version of {name} came; liquid prune deletes the old one",)
        if name is None or with_gates:
            model = resolve_model(ref, offline=offline, progress=bar.update)
            path, notes = model.path, (*notes, *model.notes)
    for note in notes:
        out.talk(note)
    return {"ref": ref, "path": str(path.absolute()), "size_bytes": path.stat().st_size}


def _here(name: str) -> Path | None:
    import contextlib

    from ..errors import LiquidError
    from ..hub.resolve import resolve_file

    with contextlib.suppress(LiquidError):
        return resolve_file(name, offline=True)
    return None


def _folder(ref: str, patterns: tuple[str, ...]) -> dict[str, Any]:
    from ..hub.pull import pull_snapshot

    with out.progress(ref, None) as bar:
        path = pull_snapshot(ref, patterns=patterns, progress=bar.update)
    return {"ref": ref, "path": str(path)}


def _planned(ref: str | None) -> dict[str, Any]:
    from ..hub.resolve import plan_pull

    told = plan_pull(ref)
    plan = told.pop("plan", None)
    return {"ref": ref, **told, **(_fit(plan) if plan else {})}


def _warn_if_too_big(plan: Any) -> None:
    """Before the first byte of a big model: does it fit? A failure to say is no failure to fetch."""
    import contextlib

    from ..amounts import size_text
    from ..errors import LiquidError

    if plan.missing_bytes < _ASKED_FROM_BYTES:
        return
    with contextlib.suppress(LiquidError):
        told = _fit(plan)
        if told.get("fits") is False:
            need, there = size_text(told["memory_bytes"]), size_text(told["available_bytes"])
            out.warn(f"{plan.repo_id} needs about {need} of memory, {there} are available; --dry-run tells what fits")


def _fit(plan: Any) -> dict[str, Any]:
    """What the remote header says about memory, of the file meant and of the other quantizations beside it."""
    from ..hub.choose import quant_tag
    from ..hub.header import remote_metadata
    from ..runtime.fit import verdict

    metadata = remote_metadata(plan)
    if metadata is None:
        return {}
    meant = verdict(metadata, sum(file.size_bytes for file in plan.files))
    tags = [quant_tag(path) for path, _ in plan.choices]
    quants = [
        {"path": path, "tag": tag if tags.count(tag) == 1 else None, **verdict(metadata, size)}
        for (path, size), tag in zip(plan.choices, tags, strict=True)
    ]
    return {"architecture": metadata.get("general.architecture"), **meant, "quants": quants}


def _show(result: dict[str, Any]) -> None:
    from ..amounts import size_text

    if "path" in result:
        out.data(result["path"])
        return
    out.table(["FILE", ">SIZE"], [(file["path"], size_text(file["size_bytes"])) for file in result["files"]])
    if quants := result.get("quants"):
        out.data("")
        rows = [
            (q["tag"] or q["path"], size_text(q["size_bytes"]), size_text(q["memory_bytes"]), _yes(q)) for q in quants
        ]
        out.table(["QUANT", ">SIZE", ">MEMORY", "FITS"], rows)
        where = f"with {result['n_ctx']} tokens of context; {_available(result)} are available"
        out.talk(f"{result['architecture']}: {size_text(result['memory_bytes'])} of memory {where}")
    out.talk(f"{size_text(result['missing_bytes'])} to fetch")


def _yes(verdict: dict[str, Any]) -> str:
    return {True: "yes", False: "no", None: "unknown"}[verdict["fits"]]


def _available(result: dict[str, Any]) -> str:
    from ..amounts import size_text

    return "an unknown amount" if result["available_bytes"] is None else size_text(result["available_bytes"])
