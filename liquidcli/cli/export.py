"""`liquid export`: a GGUF to a Hugging Face checkpoint folder, the way back from `liquid convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..ui.console import out
from .options import DryRun, Json, Quiet, complete_refs, option

if TYPE_CHECKING:
    from ..converters.export import ExportPlan, ExportResult

Model = Annotated[
    str, typer.Argument(metavar="REF", autocompletion=complete_refs, help="A GGUF file, an alias or a stored model.")
]
Folder = Annotated[
    Path, typer.Argument(metavar="OUT_FOLDER", show_default=False, help="The new folder; it is whole or absent.")
]
Dtype = Annotated[
    str,
    option(
        "--dtype",
        metavar="f32|f16|bf16|auto",
        help="Type of the matrices; auto: the file's own, f16 where it is quantized.",
    ),
]
ShardSize = Annotated[
    str, option("--max-shard-size", metavar="SIZE", help="Largest safetensors file, like 5GB, which is the default.")
]


def export(
    model: Model,
    out_folder: Folder,
    dtype: Dtype = "auto",
    max_shard_size: ShardSize = "5GB",
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a GGUF as a Hugging Face checkpoint folder.

    Architectures llama (Mixtral's experts too), liquid, qwen2, qwen3 and gemma3; quantized tensors are dequantized.
    """
    from ..amounts import parse_size
    from ..converters.export import plan_export, run_export
    from ..gguf_file import open_gguf
    from ..hub.resolve import resolve_model

    out.configure(json=json, quiet=quiet)
    shard_bytes = parse_size(max_shard_size)
    with out.progress(model, None) as bar:
        source = resolve_model(model, progress=bar.update).path
    with open_gguf(source) as f:
        plan = plan_export(f, dtype, shard_bytes)
        for warning in plan.warnings:
            out.warn(warning)
        if dry_run:
            _show_plan(plan, out_folder)
            return
        with out.progress(f"export {source.name}", plan.size_bytes) as bar:
            result = run_export(plan, out_folder, progress=bar.update)
    _show_result(plan, result)


def _show_plan(plan: ExportPlan, folder: Path) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json({**plan.as_json(), "output": str(folder)})
        return
    rows = [
        (one.name, "x".join(map(str, one.shape)), one.dtype, ", ".join(target.name for target in one.row.targets))
        for one in plan.tensors
    ]
    out.table(["TENSOR", "SHAPE", "TYPE", "FROM"], rows)
    out.talk(f"{plan.architecture} to {plan.hf_architecture}: {folder} would have {size_text(plan.size_bytes)}")


def _show_result(plan: ExportPlan, result: ExportResult) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json({**result.as_json(), "architecture": plan.hf_architecture, "warnings": list(plan.warnings)})
        return
    out.data(str(result.output))
    out.talk(f"{plan.hf_architecture}, {plan.dtype}, {size_text(result.size_bytes)}, {result.seconds:.1f} s")
