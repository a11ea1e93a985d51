"""`liquid convert`: a Hugging Face checkpoint, in a folder or on the hub, to one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NotFoundError, UsageError
from ..ui.console import out
from .options import DryRun, Json, Quiet, Revision, option

if TYPE_CHECKING:
    from ..converters import Plan, Result

Source = Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder, or owner/name on the hub.")]
OutFile = Annotated[
    Path | None, option("-o", "--outfile", metavar="OUT", help="The GGUF. Default: SRC-OUTTYPE.gguf beside SRC.")
]
OutType = Annotated[
    str,
    option(
        "--outtype",
        metavar="f32|f16|bf16|q8_0|auto",
        help="Type of the matrices; auto: the 16-bit type that the checkpoint has.",
    ),
]
ExactGate = Annotated[
    bool, option("--exact-gate", help="Keep a bottleneck gate's last two matrices apart instead of their product.")
]


def convert(
    src: Source,
    outfile: OutFile = None,
    outtype: OutType = "auto",
    dry_run: DryRun = False,
    revision: Revision = None,
    exact_gate: ExactGate = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF.

    Safetensors only, streamed; the output is whole or absent.
    """
    from ..converters import plan, run

    out.configure(json=json, quiet=quiet)
    folder, beside, name = _locate(src, revision, dry_run)
    what = plan(folder, outtype, exact_gate=exact_gate, name=name)
    for warning in what.warnings:
        out.warn(warning)
    target = outfile or beside / f"{name}-{what.outtype.upper()}.gguf"
    if dry_run:
        _show_plan(what, target)
        return
    with out.progress(f"convert {name}", what.size_bytes) as bar:
        result = run(what, target, progress=bar.update)
    _show_result(what, result)


def _locate(src: str, revision: str | None, dry_run: bool) -> tuple[Path, Path, str]:
    """The checkpoint's folder, where the output goes by default, and the model's name."""
    path = Path(src)
    if path.exists():
        return path, path.resolve().parent, path.resolve().name
    from ..hub.refs import parse_ref

    found = parse_ref(src)
    if found.kind != "hub" or found.repo_id is None:
        raise NotFoundError(f"{src} does not exist", hint="name a checkpoint folder, or owner/name on the hub")
    if dry_run:
        raise UsageError(f"{src} is on the hub, --dry-run needs a folder on this machine", hint="leave out --dry-run")
    from ..hub.pull import pull_snapshot

    with out.progress(src, None) as bar:
        folder = pull_snapshot(src, revision=revision, progress=bar.update)
    return folder, Path.cwd(), found.repo_id.rpartition("/")[2]


def _show_plan(what: Plan, target: Path) -> None:
    from ..amounts import count_text, size_text

    if out.json_mode:
        out.json({**what.as_json(), "output": str(target)})
        return
    rows = [
        (one.name, "x".join(map(str, reversed(one.shape))), one.type.name, ", ".join(s.name for s in one.sources))
        for one in what.outputs
    ]
    out.table(["TENSOR", "SHAPE", "TYPE", "FROM"], rows)
    for one in what.dropped:
        out.talk(f"left out: {one.source.name}: {one.reason}")
    out.talk(
        f"{what.hf_architecture} to {what.architecture}, {count_text(what.parameters)} parameters: "
        f"{target} would have {size_text(what.size_bytes)}"
    )


def _show_result(what: Plan, result: Result) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json({**result.as_json(), "warnings": list(what.warnings)})
        return
    out.data(str(result.output))
    out.talk(f"{what.outtype}, {size_text(result.size_bytes)}, sha256 {result.sha256}, {result.seconds:.1f} s")
