"""`liquid doctor`: what runs where, why, and the flag that changes it."""

from __future__ import annotations

from typing import Any

import typer

from ..amounts import size_text
from ..ui.console import out
from .options import Json, Quiet


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Tell what runs where and why.

    Ends with findings and the flag that changes each; exit code 1 if the native library cannot be used.
    """
    from ..diagnosis import diagnose

    out.configure(json=json, quiet=quiet)
    facts = diagnose()
    if json:
        out.json(facts)
    elif not quiet:
        out.fields(_lines(facts))
    if not json:
        for finding in facts["findings"]:
            out.data(f"\n{finding['level']}: {finding['what']}\n  change: {finding['change']}")
    if facts["library"].get("problem"):
        raise typer.Exit(1)


def _lines(facts: dict[str, Any]) -> list[tuple[str, object]]:
    library, cpu, model, liquid = (facts[name] for name in ("library", "cpu", "default_model", "liquid"))
    lines: list[tuple[str, object]] = [
        ("liquid", f"{liquid['version']}, Python {liquid['python']} ({liquid['executable']})"),
        ("system", facts["system"]),
        ("library", _library(library)),
    ]
    if "path" in library:
        lines += [("  file", library["path"]), ("  uses", " ".join(library["features"]))]
        lines += [(f"  device {device['name']}", _device(device)) for device in library["devices"]]
    lines += [
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores"),
        ("  has", " ".join([*cpu["features"], *(["AMX"] if cpu["amx"] else [])]) or "unknown"),
        ("memory", f"{_size(facts['memory']['available_bytes'])} of {_size(facts['memory']['total_bytes'])} available"),
        ("own files", _folder(facts["folders"]["home"])),
        ("hub cache", _folder(facts["folders"]["hub_cache"])),
        ("default model", f"{model['name']}, {model['path'] or 'not fetched'}"),
        ("  gates", model["gates"] or "none built in"),
        *((("  memory", _need(model["memory"])),) if model["memory"] else ()),
    ]
    return [*lines, *((f"${name}", value) for name, value in facts["environment"].items())]


def _library(library: dict[str, Any]) -> str:
    state = f"build {library['stamp']}" if "stamp" in library else "cannot be used"
    return f"llama-cpp-python {library.get('version') or 'unknown'}, {state}"


def _device(device: dict[str, Any]) -> str:
    return f"{device['description']} ({device['kind']}, {_size(device['memory_free_bytes'])} free)"


def _need(need: dict[str, Any]) -> str:
    return f"{size_text(need['total_bytes'])} at {need['n_ctx']} tokens, {size_text(need['kv_bytes'])} of it K and V"


def _folder(folder: dict[str, Any]) -> str:
    return f"{folder['path']} ({_size(folder['free_bytes'])} free)"


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else size_text(size_bytes)
