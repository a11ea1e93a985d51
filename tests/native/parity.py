"""The native library against the PyTorch reference: same weights, same tokens, same decisions, same logits.

    python -m tests.native.parity --family all --pairs 100000

F32 weights, F32 KV. A sequence counts up to its first flip (a decision or an expert the two sides disagree on): what
follows a flip differs for good reason. Flips with |w - threshold| < 1e-4 are counted apart. Knows no tolerance: it
measures, tests.native.test_parity judges.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from liquidcli.llama import depth as depth_api
from liquidcli.llama import library
from liquidcli.reference import LiquidForCausalLM, Output
from tests.tiny import make_config, make_model, random_tokens
from tests.tiny_families import FAMILIES
from tests.tiny_gguf import write_gguf

NEAR = 1e-4
SCHEDULES = ("tokens", "prompt", "mixed")
N_PARALLEL = 4
F32 = 0  # ggml type


@dataclass(frozen=True)
class Setting:
    """How the native side is run; `depth` is auto, full, forced or a threshold."""

    schedule: str = "prompt"
    flash: bool = False
    depth: str | float = "auto"
    engine: str = "AUTO"
    n_threads: int = 1
    n_ubatch: int = 512
    kv_unified: bool = True
    swa_full: bool = False
    trace: bool = True  # without one only logits and executed_fraction are compared: give forced decisions

    def __str__(self) -> str:
        odd = {"engine": "AUTO", "n_ubatch": 512, "kv_unified": True, "swa_full": False, "trace": True}
        extra = [f"{name}={getattr(self, name)}" for name, value in odd.items() if getattr(self, name) != value]
        return " ".join([self.schedule, "flash" if self.flash else "plain", f"depth={self.depth}", *extra])


@dataclass
class Rows:
    """What one side says about every token of every sequence."""

    logits: np.ndarray  # [S, T, n_vocab]
    w: np.ndarray  # [S, T, n_gate]
    run: np.ndarray  # bool [S, T, n_gate]
    experts: np.ndarray  # [S, T, n_moe_layer, k], sorted along k
    executed_fraction: float = 0.0


@dataclass
class Comparison:
    family: str
    setting: Setting
    pairs: int = 0
    ran: int = 0
    flips: int = 0
    near_flips: int = 0
    expert_pairs: int = 0
    expert_flips: int = 0
    dropped: int = 0  # pairs behind a sequence's first flip
    max_w_diff: float = 0.0
    logit_diff: float = 0.0  # max |difference| / max |reference|
    fraction_diff: float = 0.0  # executed_fraction; NaN when a flip makes it meaningless
    z_std: list[float] = field(default_factory=list)  # per gate
    seconds: float = 0.0


class NativeModel:
    """A model file and the tokens' way through it."""

    def __init__(self, path: Path) -> None:
        self.lib = library.load()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0
        library.log.reset()
        self.pointer = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise RuntimeError(f"{path.name}: {library.log.complaint()}")
        self.info = depth_api.model_info(self.pointer)
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.pointer))

    def close(self) -> None:
        self.lib.llama_model_free(self.pointer)

    def context(self, setting: Setting, n_tokens: int, cache_type: int = F32) -> int:
        params = self.lib.llama_context_default_params()
        params.n_ctx = N_PARALLEL * -(-n_tokens // 256) * 256
        params.n_batch, params.n_ubatch = N_PARALLEL * n_tokens, setting.n_ubatch
        params.n_seq_max, params.kv_unified = N_PARALLEL, setting.kv_unified
        params.type_k = params.type_v = cache_type
        params.flash_attn_type = int(setting.flash)
        params.swa_full = setting.swa_full
        params.n_threads = params.n_threads_batch = setting.n_threads
        pointer = self.lib.llama_init_from_model(self.pointer, params)
        if not pointer:
            raise RuntimeError(f"no context: {library.log.complaint()}")
        return pointer

    def run(self, tokens: np.ndarray, setting: Setting, forced: np.ndarray | None = None) -> Rows:
        """All sequences, N_PARALLEL at a time, decoded as the setting's schedule says."""
        n_seq, n_tokens = tokens.shape
        info = self.info
        rows = Rows(
            np.zeros((n_seq, n_tokens, self.n_vocab), np.float32),
            np.full((n_seq, n_tokens, info.n_gate), np.nan, np.float32),
            np.zeros((n_seq, n_tokens, info.n_gate), bool),
            np.full((n_seq, n_tokens, info.n_moe_layer, info.n_expert_used), -1, np.int32),
        )
        ctx = self.context(setting, n_tokens)
        batch = self.lib.llama_batch_init(N_PARALLEL * n_tokens, 0, 1)
        depth_api.set_trace(ctx, setting.trace)
        depth_api.set_engine(ctx, depth_api.ExecutionEngine[setting.engine])
        for first in range(0, n_seq, N_PARALLEL):
            group = tokens[first : first + N_PARALLEL]
            self._set_depth(ctx, setting, None if forced is None else forced[first : first + N_PARALLEL])
            self.lib.llama_memory_clear(self.lib.llama_get_memory(ctx), True)
            for seqs, positions in _schedule(setting.schedule, *group.shape, seed=first):
                self._decode(ctx, batch, group[seqs, positions], seqs, positions)
                self._collect(ctx, rows, first, seqs, positions, setting.trace)
        stats = depth_api.stats(ctx)
        rows.executed_fraction = stats.n_layer_runs / (stats.n_tokens * info.n_layer)
        self.lib.llama_batch_free(batch)
        self.lib.llama_free(ctx)
        return rows

    def _set_depth(self, ctx: int, setting: Setting, forced: np.ndarray | None) -> None:
        if isinstance(setting.depth, float):
            done = depth_api.set_depth(ctx, depth_api.Mode.THRESHOLD, setting.depth)
        else:
            done = depth_api.set_depth(ctx, depth_api.Mode[setting.depth.upper()])
        if forced is not None:
            done = done and depth_api.set_forced(ctx, forced)
        assert done, "the library refused the depth setting"

    def _decode(self, ctx: int, batch, tokens: np.ndarray, seqs: np.ndarray, positions: np.ndarray) -> None:
        batch.n_tokens = len(tokens)
        for i in range(len(tokens)):
            batch.token[i], batch.pos[i] = int(tokens[i]), int(positions[i])
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, int(seqs[i]), 1
        code = self.lib.llama_decode(ctx, batch)
        assert code == 0, f"llama_decode returned {code}: {library.log.complaint()}"

    def _collect(self, ctx: int, rows: Rows, first: int, seqs: np.ndarray, positions: np.ndarray, traced: bool) -> None:
        pointer = self.lib.llama_get_logits(ctx)
        flat = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        rows.logits[first + seqs, positions] = np.ctypeslib.as_array(flat, shape=(len(seqs), self.n_vocab))
        if not traced:
            return
        trace = depth_api.trace(ctx, self.info)
        assert sorted(zip(trace.seq, trace.pos, strict=True)) == sorted(zip(seqs, positions, strict=True))
        rows.w[first + trace.seq, trace.pos] = trace.w
        rows.run[first + trace.seq, trace.pos] = trace.run
        if trace.experts is not None:
            rows.experts[first + trace.seq, trace.pos] = np.sort(trace.experts, -1)


def _schedule(kind: str, n_seq: int, n_tokens: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sequence and position of each token of each llama_decode."""
    every = np.arange(n_tokens)
    if kind == "tokens":
        for seq in range(n_seq):
            for position in every:
                yield np.array([seq]), np.array([position])
    elif kind == "prompt":
        for seq in range(n_seq):
            yield np.full(n_tokens, seq), every
    else:
        yield from _mixed(n_seq, n_tokens, np.random.default_rng(seed))


def _mixed(n_seq: int, n_tokens: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of several sequences at different positions, 0 to 6 tokens of each, their tokens interleaved."""
    done = np.zeros(n_seq, int)
    while (done < n_tokens).any():
        counts = np.minimum(random.integers(0, 7, n_seq), n_tokens - done)
        seqs = random.permutation(np.repeat(np.arange(n_seq), counts))
        if len(seqs) == 0:
            continue
        positions = np.empty_like(seqs)
        for seq in range(n_seq):
            positions[seqs == seq] = done[seq] + np.arange(counts[seq])
        done += counts
        yield seqs, positions


def reference_rows(model: LiquidForCausalLM, tokens: torch.Tensor, setting: Setting, forced: np.ndarray | None) -> Rows:
    keys = {"depth": setting.depth} if isinstance(setting.depth, str) else {"threshold": setting.depth}
    outs: list[Output] = []
    for first in range(0, len(tokens), 32):
        part = slice(first, first + 32)
        table = {} if forced is None else {"forced": torch.from_numpy(forced[part])}
        outs.append(model(tokens[part], **keys, **table))
    logits = torch.cat([out.logits for out in outs]).numpy()
    w, run, experts = (
        torch.cat([getattr(out.trace, name) for out in outs]).numpy() for name in ("w", "run", "experts")
    )
    layers_run = torch.cat([out.trace.layers_run for out in outs]).double().mean()
    return Rows(logits, w, run, np.sort(experts, -1), float(layers_run) / outs[0].trace.n_layer)


def compare(native: Rows, ref: Rows, result: Comparison, threshold: float) -> None:
    """Adds the comparison of all sequences to `result`."""
    largest = np.abs(ref.logits).max()
    for seq in range(len(ref.run)):
        flipped = native.run[seq] != ref.run[seq]  # [T, n_gate]
        rerouted = (native.experts[seq] != ref.experts[seq]).any(-1)  # [T, n_moe_layer]
        bad = flipped.any(-1) | rerouted.any(-1)  # [T]
        clean = int(bad.argmax()) if bad.any() else len(bad)
        pairs = flipped[: clean + 1]
        result.pairs += pairs.size
        result.ran += int(ref.run[seq, : clean + 1].sum())
        result.dropped += flipped.size - pairs.size
        result.expert_pairs += rerouted[: clean + 1].size
        if clean < len(bad):
            _count_first_flip(result, flipped[clean], rerouted[clean], ref.w[seq, clean], threshold)
        assert np.array_equal(np.isnan(native.w[seq, :clean]), np.isnan(ref.w[seq, :clean])), "gates were left out"
        w_diff = np.abs(native.w[seq, :clean] - ref.w[seq, :clean])
        result.max_w_diff = max(result.max_w_diff, float(np.nanmax(w_diff, initial=0.0)))
        logit_diff = np.abs(native.logits[seq, :clean] - ref.logits[seq, :clean])
        result.logit_diff = max(result.logit_diff, float(logit_diff.max(initial=0.0) / largest))
    flips = result.flips + result.near_flips + result.expert_flips
    result.fraction_diff = float("nan") if flips else abs(native.executed_fraction - ref.executed_fraction)


def _count_first_flip(result: Comparison, flipped: np.ndarray, rerouted: np.ndarray, w: np.ndarray, tau: float) -> None:
    """Of one token only the first disagreement is its own finding, and gates come before the experts behind them."""
    if flipped.any():
        near = abs(w[flipped.argmax()] - tau) < NEAR
        result.near_flips += int(near)
        result.flips += int(not near)
    else:
        result.expert_flips += int(rerouted.any())


def _spread(w: np.ndarray) -> list[float]:
    """Standard deviation of each gate's logit where it was evaluated; empty where none was."""
    if w.size == 0 or np.isnan(w).all():
        return []
    w = w.astype(np.float64).reshape(-1, w.shape[-1])
    return np.nanstd(np.log(w / (1 - w)), 0).round(2).tolist()


def run_family(family: str, settings: list[Setting], n_seq: int, n_tokens: int, seed: int = 11) -> list[Comparison]:
    torch.set_num_threads(1)
    model = make_model(family)
    tokens = random_tokens(model.config, n_seq, n_tokens, seed)
    n_gate = len(model.config.gates)
    table = np.random.default_rng(seed).integers(0, 2, (n_seq, n_tokens, n_gate)).astype(np.uint8)
    refs: dict[str | float, Rows] = {}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        native = NativeModel(write_gguf(model, Path(folder) / "tiny.gguf"))
        for setting in settings:
            started = time.monotonic()
            forced = table if setting.depth == "forced" else None
            if setting.depth not in refs:
                refs[setting.depth] = reference_rows(model, tokens, setting, forced)
            result = Comparison(family, setting)
            own = model.config.depth.threshold if model.config.depth else 0.5
            tau = setting.depth if isinstance(setting.depth, float) else own
            ref, found = refs[setting.depth], native.run(tokens.numpy(), setting, forced)
            if not setting.trace:
                found = replace(found, w=ref.w, run=ref.run, experts=ref.experts)
            compare(found, ref, result, tau)
            result.z_std = _spread(refs[setting.depth].w)
            result.seconds = time.monotonic() - started
            results.append(result)
        native.close()
    return results


COLUMNS = {
    "family": 20, "schedule": 14, "pairs": 8, "run": 5, "flips": 6, "near": 5, "experts": 8,
    "dropped": 8, "max dw": 9, "logits": 9, "z std": 11, "s": 7,
}  # fmt: skip


def _row(r: Comparison) -> list[str]:
    share = r.ran / r.pairs if r.pairs else 1.0
    spread = f"{min(r.z_std):.2f}-{max(r.z_std):.2f}" if r.z_std else "-"
    counts = [str(n) for n in (r.flips, r.near_flips, r.expert_flips, r.dropped)]
    name = f"{r.setting.schedule}{'+flash' if r.setting.flash else ''}"
    errors = [f"{r.max_w_diff:.1e}", f"{r.logit_diff:.1e}"]
    return [r.family, name, str(r.pairs), f"{share:.2f}", *counts, *errors, spread, f"{r.seconds:.1f}"]


def _print(cells: list[str]) -> None:
    print(" ".join(cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", required=True, help="name, or all")
    parser.add_argument("--pairs", type=int, default=100_000, help="(token, gate) pairs per family and schedule")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--schedule", choices=SCHEDULES, action="append")
    parser.add_argument("--flash", choices=("on", "off", "both"), default="off")
    args = parser.parse_args()
    flashes = {"on": [True], "off": [False], "both": [False, True]}[args.flash]
    settings = [Setting(schedule, flash) for schedule in args.schedule or SCHEDULES for flash in flashes]
    _print(list(COLUMNS))
    for family in list(FAMILIES) if "all" in args.family else args.family:
        n_gate = max(1, len(make_config(family).gates))
        for result in run_family(family, settings, -(-args.pairs // (n_gate * args.length)), args.length):
            _print(_row(result))


if __name__ == "__main__":
    main()
