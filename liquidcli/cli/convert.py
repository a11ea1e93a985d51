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

Source = Annotated[
    str | None,
    typer.Argument(metavar="SRC", show_default=False, help="A checkpoint folder, or owner/name on the hub."),
]
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
Stock = Annotated[
    bool, option("--stock", help="llama.cpp's own architecture, for other programs, even where it computes otherwise.")
]
ExitLayers = Annotated[
    str | None,
    option("--exit-layers", metavar="N,N...", help="Note that the head was trained to read after so many layers."),
]
SplitMaxSize = Annotated[
    str | None, option("--split-max-size", metavar="N(M|G)", help="Several files, of at most this size of tensors.")
]
ListFamilies = Annotated[bool, option("--list", help="List the architectures that convert, and do nothing.")]


def convert(
    src: Source = None,
    outfile: OutFile = None,
    outtype: OutType = "auto",
    exact_gate: ExactGate = False,
    stock: Stock = False,
    exit_layers: ExitLayers = None,
    split_max_size: SplitMaxSize = None,
    dry_run: DryRun = False,
    list_: ListFamilies = False,
    revision: Revision = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Hugging Face checkpoint to GGUF.

    Safetensors only, streamed; the output is whole or absent.
    """
    from ..converters import plan, run

    out.configure(json=json, quiet=quiet)
    if list_:
        _show_families()
        return
    if src is None:
        raise UsageError("Missing argument 'SRC'.", hint="liquid convert FOLDER, or liquid convert --list")
    folder, beside, name = _locate(src, revision, dry_run)
    what = plan(
        folder,
        outtype,
        exact_gate=exact_gate,
        stock=stock,
        exit_layers=_numbers(exit_layers),
        split_max_size=_split_size(split_max_size),
        name=name,
    )
    for warning in what.warnings:
        out.warn(warning)
    target = outfile or beside / f"{name}-{what.outtype.upper()}.gguf"
    if dry_run:
        _show_plan(what, target)
        return
    with out.progress(f"convert {name}", what.size_bytes) as bar:
        result = run(what, target, progress=bar.update)
    _show_result(what, result)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--exit-layers is {text!r}, numbers with commas were expected", hint="4,8,12") from None


def _split_size(text: str | None) -> int | None:
    """K, M and G are powers of ten, as for upstream's converter."""
    from ..amounts import parse_size

    return None if text is None else parse_size(text + "B" * text.upper().endswith(("K", "M", "G")), "500M or 2G")


def _show_families() -> None:
    from ..converters.families import families

    found = families()
    if out.json_mode:
        out.json([one.as_json() for one in found])
        return
    out.table(["ARCHITECTURE", "WHAT"], [(one.architecture, one.summary) for one in found])


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
    rows = [(one.name, "x".join(map(str, reversed(one.shape))), one.type.name, one.origin) for one in what.outputs]
    out.table(["TENSOR", "SHAPE", "TYPE", "FROM"], rows)
    for one in what.dropped:
        out.talk(f"left out: {one.source.name}: {one.reason}")
    out.talk(
        f"{what.hf_architecture} to {what.architecture}, {count_text(what.parameters)} parameters: "
        f"{target} would have {size_text(what.size_bytes)}{_in_files(len(what.files))}"
    )


def _show_result(what: Plan, result: Result) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json({**result.as_json(), "stock": what.stock, "warnings": list(what.warnings)})
        return
    for file in result.files:
        out.data(str(file.path))
    for file in result.files:
        out.talk(f"{what.outtype}, {size_text(file.size_bytes)}, sha256 {file.sha256}")
    out.talk(f"{result.seconds:.1f} s{_in_files(len(result.files))}")


def _in_files(count: int) -> str:
    return f" in {count} files" if count > 1 else ""
