"""`liquid imatrix`: what a model's matrices see over a text, for `liquid quantize --imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import UsageError
from ..files import check_apart, output_target
from ..ui.console import out
from .locate import locate
from .options import (
    BatchSize,
    Depth,
    FileOpt,
    Gates,
    GpuLayers,
    Json,
    ModelOpt,
    Offline,
    Quiet,
    Threads,
    UBatchSize,
    WindowSize,
    option,
)
from .perplexity import Chunks, read_text

if TYPE_CHECKING:
    from ..quant import Sums

FORMS = ("gguf", "dat")
Output = Annotated[Path, option("-o", "--output", metavar="FILE", help="Write here; imatrix.gguf if not given.")]
InFile = Annotated[
    list[Path] | None,
    option("--in-file", metavar="FILE", help="Add to what this file counted; repeatable. Without -f: only add files."),
]
OutputFormat = Annotated[
    str, option("--output-format", metavar="gguf|dat", help="gguf, or the older form for older programs.")
]
ProcessOutput = Annotated[bool, option("--process-output", help="Count for output.weight too.")]


def imatrix(
    model: ModelOpt = None,
    file: FileOpt = None,
    output: Output = Path("imatrix.gguf"),
    in_file: InFile = None,
    output_format: OutputFormat = "gguf",
    n_ctx: WindowSize = 512,
    n_chunks: Chunks = -1,
    n_batch: BatchSize = 2048,
    n_ubatch: UBatchSize = 512,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    process_output: ProcessOutput = False,
    depth: Depth = "auto",
    gates: Gates = None,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much each input of each matrix matters over a text.

    Figures and file as llama-imatrix's, expert by expert. Of a liquid model, a token counts only for the matrices that
    it used. Files of texts that were counted apart are added up by --in-file. The path of the file is printed.
    """
    from ..quant import read_sums
    from ..runtime.depth import DepthPolicy

    out.configure(json=json, quiet=quiet)
    policy = DepthPolicy.parse(depth)
    _check(output, output_format, n_ctx)
    sums = read_sums(in_file or (), n_ctx)
    n_before, n_tokens = sums.n_chunks(n_ctx), sums.n_tokens
    about: dict[str, Any] = {"in_files": list(map(str, in_file or ()))}
    if file or not in_file:
        text = read_text(file, "imatrix")
        path = locate(model, gates, offline=offline, depths=[policy])
        check_apart(output, path, file)
        about |= _count(
            path, text, policy, sums, (n_ctx, n_chunks, n_batch), process_output=process_output,
            n_ubatch=n_ubatch, n_threads=n_threads, n_gpu_layers=n_gpu_layers,
        )  # fmt: skip
        sums.datasets.append(str(file))
    n_new = about.pop("n_new", 0)
    n_chunks = n_before + n_new
    _write(output, output_format, sums, n_chunks, n_ctx)
    _show(output, sums, {"n_chunks": n_chunks, "n_ctx": n_ctx, "n_tokens": n_tokens + n_new * n_ctx, **about})


def _check(output: Path, form: str, n_ctx: int) -> None:
    """Before hours are spent."""
    from ..runtime.imatrix import FEWEST_ROWS

    if form not in FORMS:
        raise UsageError(f"--output-format {form}: {' or '.join(FORMS)} was expected")
    if n_ctx < FEWEST_ROWS:
        found = f"an importance matrix needs a context of at least {FEWEST_ROWS} tokens, not {n_ctx}"
        raise UsageError(found, hint="for example -c 512")
    output_target(output)


def _count(
    path: Path, text: str, policy: Any, sums: Sums, numbers: tuple[int, int, int], **settings: Any
) -> dict[str, Any]:
    """Add what `text` shows to `sums`."""
    from ..runtime.imatrix import Entry, measure_importance

    start = {name: Entry(*entry) for name, entry in sums.entries.items()}
    with out.progress("counting", None, "chunks") as bar:
        found = measure_importance(path, text, policy, *numbers, start=start, progress=bar.update, **settings)
    sums.entries = {name: (entry.sums, entry.counts) for name, entry in found.entries.items()}
    return {"model": path, "n_new": found.n_chunks, "seconds": round(found.seconds, 3), "depth": found.depth}


def _write(output: Path, form: str, sums: Sums, n_chunks: int, n_ctx: int) -> None:
    from ..quant import write_dat, write_imatrix

    if form == "gguf":
        write_imatrix(output, sums.entries, datasets=sums.datasets, n_chunks=n_chunks, chunk_tokens=n_ctx)
        return
    dataset = sums.datasets[-1] if sums.datasets else ""
    left_out = write_dat(output, sums.entries, dataset=dataset, n_chunks=n_chunks, chunk_tokens=n_ctx)
    if left_out:
        out.warn(f"{len(left_out)} matrices that no token used are left out, as the older form has it")


def _show(output: Path, sums: Sums, about: dict[str, Any]) -> None:
    if sums.n_unseen:
        out.warn(f"{sums.n_unseen} experts were asked by no token; a longer text would reach more")
    if sums.n_unused:
        out.warn(f"{sums.n_unused} matrices were used by no token; a longer text would reach more")
    if out.json_mode:
        known = {"model": None, "output": output, "n_entries": len(sums.entries), "experts_unseen": sums.n_unseen}
        out.json({**known, "seconds": None, "depth": None, **about})
        return
    took = f", in {about['seconds']:.1f} s" if "seconds" in about else ""
    out.talk(f"{len(sums.entries)} matrices over {_counted(about)}{took}")
    out.data(str(output))


def _counted(about: dict[str, Any]) -> str:
    """Files that are added up may have been counted in chunks of other sizes."""
    n_files, n_chunks = len(about["in_files"]), about["n_chunks"]
    if n_files:
        return f"{about['n_tokens']} tokens, {n_files} file{'s' * (n_files > 1)} of them added"
    return f"{n_chunks} chunk{'s' * (n_chunks > 1)} of {about['n_ctx']} tokens"
