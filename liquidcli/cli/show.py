"""`liquid show`: what is in a model file."""

from __future__ import annotations

from typing import Annotated, Any

from ..errors import NotFoundError
from ..ui.console import out
from .options import Json, Quiet, Ref, Verbose, option

GetKey = Annotated[str | None, option("--get", metavar="KEY", help="Print the value of this metadata key, whole.")]


def show(
    ref: Ref = None, get: GetKey = None, verbose: Verbose = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Show what is in a model file.

    Sizes, the kind of model, gates by layer; with -v all metadata and tensors.
    """
    from ..describe import describe, tensors
    from ..gguf_file import open_gguf
    from ..hub.resolve import resolve_model

    out.configure(json=json, quiet=quiet)
    with open_gguf(resolve_model(ref, offline=True).path) as f:
        if get is not None:
            _value(f.metadata, get)
            return
        about = {**describe(f), **({"tensors": tensors(f)} if verbose else {})}
    if json:
        out.json(about)
    else:
        _print(about)


def _value(metadata: dict[str, Any], key: str) -> None:
    import difflib

    if key not in metadata:
        near = difflib.get_close_matches(key, metadata, n=3, cutoff=0.4)
        raise NotFoundError(f"there is no key {key}", hint=f"there is {', '.join(near)}" if near else None)
    value = metadata[key]
    if out.json_mode or isinstance(value, list):
        out.json(value)
    else:
        out.data(str(value))


def _print(about: dict[str, Any]) -> None:
    from ..amounts import count_text, size_text

    metadata, arch = about["metadata"], about["architecture"]
    out.fields(
        [
            ("file", about["path"]),
            ("name", about["name"] or "-"),
            ("architecture", arch),
            ("parameters", count_text(about["parameters"])),
            ("size", size_text(about["size_bytes"])),
            ("file type", about["file_type"]),
            ("context length", metadata.get(f"{arch}.context_length", "-")),
            ("embedding length", metadata.get(f"{arch}.embedding_length", "-")),
            ("layers", metadata.get(f"{arch}.block_count", "-")),
            *_depth_lines(about["depth"]),
            *_exit_lines(about["exit_layers"]),
        ]
    )
    if "tensors" in about:
        out.data("")
        out.table(["KEY", "VALUE"], [(key, _cut(value)) for key, value in metadata.items()])
        out.data("")
        rows = [(t["name"], "x".join(map(str, t["shape"])), t["type"], t["role"]) for t in about["tensors"]]
        out.table(["TENSOR", "SHAPE", "TYPE", "ROLE"], rows)


def _depth_lines(depth: dict[str, Any] | None) -> list[tuple[str, str]]:
    if depth is None:
        return [("gates", "none: every layer runs")]
    where = " ".join(
        f"{gate['layer']}{'-' + str(gate['layer'] + gate['span'] - 1) if gate['span'] > 1 else ''}"
        f"{'' if gate['scope'] == 'layer' else ':' + gate['scope']}{'!' if gate['exit'] else ''}"
        for gate in depth["gates"]
    )
    lines = [("gates", f"{len(depth['gates'])} ({depth.get('gate_kind')}), at layers {where}")]
    lines.append(("threshold", f"{depth.get('threshold', 0):g}, kv policy {depth.get('kv_policy')}"))
    if calibration := depth["calibration"]:
        pairs = " ".join(f"{p['executed_fraction']:.0%}@{p['threshold']:.2f}" for p in calibration)
        lines.append(("calibration", f"{pairs} (layers run @ tau)"))
    return lines


def _exit_lines(layers: list[int] | None) -> list[tuple[str, str]]:
    return [("exit layers", f"{', '.join(map(str, layers))}: the head was trained to read there too")] if layers else []


def _cut(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{value['length']} values]"
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
