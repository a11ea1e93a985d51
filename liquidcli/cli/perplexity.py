"""`liquid perplexity`: how well a model predicts a text, at one or several depths, alone or beside a base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .. import text_file
from ..errors import UsageError
from ..ui.console import out
from .locate import locate
from .options import (
    BaseRef,
    BatchSize,
    Depth,
    FileOpt,
    FlashAttn,
    Gates,
    GpuLayers,
    Json,
    ModelOpt,
    Offline,
    Quiet,
    Threads,
    TypeK,
    TypeV,
    UBatchSize,
    WindowSize,
    option,
)
from .perplexity_shown import add_ratios, print_results

if TYPE_CHECKING:
    from ..runtime.perplexity import Evaluation

Chunks = Annotated[
    int, option("--chunks", metavar="N", min=-1, help="Windows to evaluate at most; -1: all of the text.")
]
KlDivergence = Annotated[
    bool, option("--kl-divergence", help="Compare with --base, or else with the model itself at full depth.")
]
PplStride = Annotated[
    int, option("--ppl-stride", metavar="N", min=0, help="Score each token once, N at a time; 0: half windows.")
]
HellaSwag = Annotated[
    bool, option("--hellaswag", help="The file holds HellaSwag tasks of six lines: score the endings.")
]
Plot = Annotated[Path | None, option("--plot", metavar="FILE.png", help="Draw the curve over the depths.")]
HellaSwagTasks = Annotated[int, option("--hellaswag-tasks", metavar="N", min=1, help="HellaSwag tasks to score.")]


def perplexity(
    model: ModelOpt = None,
    file: FileOpt = None,
    n_ctx: WindowSize = 512,
    n_chunks: Chunks = -1,
    n_batch: BatchSize = 2048,
    n_ubatch: UBatchSize = 512,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    flash_attn: FlashAttn = "auto",
    type_k: TypeK = "f16",
    type_v: TypeV = "f16",
    depth: Depth = "auto",
    gates: Gates = None,
    base: BaseRef = None,
    kl_divergence: KlDivergence = False,
    ppl_stride: PplStride = 0,
    hellaswag: HellaSwag = False,
    n_tasks: HellaSwagTasks = 400,
    plot: Plot = None,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a model predicts a text.

    Figures as llama-perplexity's. --depth takes a comma list. --base names a model, evaluated at full depth, to
    compare the predictions with.
    """
    from ..runtime.depth import DepthPolicy
    from .perplexity_plot import check_curve, write_plot

    out.configure(json=json, quiet=quiet)
    policies = [DepthPolicy.parse(word) for word in depth.split(",")]
    text = read_text(file, "perplexity")
    if plot and hellaswag:
        raise UsageError("--plot draws perplexity, which --hellaswag does not measure", hint="one or the other")
    if plot:
        check_curve(plot, len(policies), file)
    settings = {
        "n_ubatch": n_ubatch, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers, "flash_attn": flash_attn,
        "type_k": type_k, "type_v": type_v,
    }  # fmt: skip
    path = locate(model, gates, offline=offline, depths=policies)
    _warn_untrained(path, n_ctx)
    if hellaswag:
        results = _hellaswag(path, text, policies, n_tasks, n_ctx, settings)
    else:
        base_path = locate(base, offline=offline) if base else path if kl_divergence else None
        results = _perplexity(path, base_path, text, policies, (n_ctx, n_chunks, n_batch, ppl_stride), settings)
    if json:
        out.json(results[0] if len(results) == 1 else results)
    if plot:
        write_plot(plot, results, f"{path.name} on {file.name if file else ''}, windows of {n_ctx}")


def read_text(file: Path | None, verb: str) -> str:
    """The text, as llama-perplexity and its like take it: without its last newline."""
    if file is None:
        raise UsageError("a text to measure on is needed", hint=f"liquid {verb} -m MODEL -f FILE")
    return text_file.read_text(file).removesuffix("\n")


def _warn_untrained(path: Path, n_ctx: int) -> None:
    from ..gguf_file import open_gguf
    from ..runtime.info import trained_context, untrained_context

    with open_gguf(path) as f:
        note = untrained_context(n_ctx, trained_context(f.metadata))
    if note:
        out.warn(note)


def _perplexity(
    path: Path, base_path: Path | None, text: str, policies: list[Any], numbers: tuple[int, int, int, int],
    settings: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    from ..runtime.perplexity import measure

    runs = measure(path, text, policies, *numbers, base_path=base_path, on_batch=_tell_batch, **settings)
    results = [run.as_json() for run in runs]
    add_ratios(results)
    if not out.json_mode:
        print_results(results)
    return results


def _tell_batch(runs: list[Evaluation]) -> None:
    """The chunks that are new, as llama-perplexity prints them; of several depths the last, one line each."""
    for run in runs:
        head = f"{run.policy}: " if len(runs) > 1 else ""
        first = run.n_done - run.n_new + 1
        out.talk(head + "".join(f"[{i}]{ppl:.4f}," for i, ppl in enumerate(run.chunk_ppl[first - 1 :], first)))


def _hellaswag(
    path: Path, text: str, policies: list[Any], n_tasks: int, n_ctx: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    from ..runtime.hellaswag import measure, read_tasks

    tasks = read_tasks(text, n_tasks)
    results = measure(path, tasks, policies, n_ctx, on_progress=_tell_tasks, **settings)
    for result in results if not out.json_mode else ():
        low, high = result["acc_norm_95"]
        out.data(
            f"depth {result['depth']['mode']}: HellaSwag acc_norm = {result['acc_norm']:.4%} [{low:.4%}, {high:.4%}] "
            f"over {result['n_tasks']} tasks, {result['depth']['executed_fraction']:.1%} of the layers run"
        )
    return results


def _tell_tasks(done: int, total: int, accuracy: float) -> None:
    if done % 25 == 0 or done == total:
        out.talk(f"{done} of {total}: {accuracy:.2%}")
