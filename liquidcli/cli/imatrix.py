"""`liquid imatrix`: what a model's matrices see over a text, for `liquid quantize --imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..ui.console import out
from .locate import locate
from .options import (
    BatchSize,
    CtxSize,
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
    option,
)
from .perplexity import Chunks, read_text

Output = Annotated[Path, option("-o", "--output", metavar="FILE", help="Write here; imatrix.gguf if not given.")]
ProcessOutput = Annotated[bool, option("--process-output", help="Count for output.weight too.")]


def imatrix(
    model: ModelOpt = None,
    file: FileOpt = None,
    output: Output = Path("imatrix.gguf"),
    n_ctx: CtxSize = 512,
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
    it used. The path of the file is printed.
    """
    from ..quant import write_imatrix
    from ..runtime.depth import DepthPolicy
    from ..runtime.imatrix import measure_importance

    out.configure(json=json, quiet=quiet)
    policy, text = DepthPolicy.parse(depth), read_text(file, "imatrix")
    path = locate(model, gates, offline=offline)
    with out.progress("counting", None, "chunks") as bar:
        found = measure_importance(
            path, text, policy, n_ctx, n_chunks, n_batch, process_output=process_output, progress=bar.update,
            n_ubatch=n_ubatch, n_threads=n_threads, n_gpu_layers=n_gpu_layers,
        )  # fmt: skip
    entries = {name: (entry.sums, entry.counts) for name, entry in found.entries.items()}
    write_imatrix(output, entries, datasets=[str(file)], n_chunks=found.n_chunks, chunk_tokens=n_ctx)
    if found.n_unseen:
        out.warn(f"{found.n_unseen} experts were asked by no token; a longer text would reach more")
    if json:
        about = {"model": str(path), "output": str(output), "n_entries": len(entries), "n_chunks": found.n_chunks}
        about |= {"n_ctx": n_ctx, "n_tokens": found.n_chunks * n_ctx, "experts_unseen": found.n_unseen}
        out.json({**about, "seconds": round(found.seconds, 3), "depth": found.depth})
        return
    out.talk(f"{len(entries)} matrices over {found.n_chunks} chunks of {n_ctx} tokens, in {found.seconds:.1f} s")
    out.data(str(output))
