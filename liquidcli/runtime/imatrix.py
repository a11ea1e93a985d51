"""How much each input of each matrix matters over a text: sums of squares of what goes into it, as in llama-imatrix.

Of a liquid model a token counts for a matrix only if it used it: the matrices of a layer that was skipped saw nothing
of it, an adapter saw nothing of those that ran. Knows products and decisions; files are `liquidcli.quant`'s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import IntegrityError, Interrupted, UsageError, quote
from .depth import DepthPolicy
from .windows import plan_windows, sequences_at_once, steps_of

if TYPE_CHECKING:
    from ..llama.evaluation import Product
    from .engine import Engine

FEWEST_ROWS = 16  # llama-imatrix leaves smaller batches out
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
Mask = Callable[[str], np.ndarray | None]  # matrix -> [n_tokens] bool, which tokens used it; None: all


@dataclass
class Entry:
    sums: np.ndarray  # [n_matrices, n_per_row] float32
    counts: np.ndarray  # [n_matrices] int64, or [1] where all were asked alike


@dataclass
class Importance:
    """What was counted."""

    n_ctx: int
    entries: dict[str, Entry] = field(default_factory=dict)
    n_chunks: int = 0
    seconds: float = 0.0
    depth: dict[str, Any] = field(default_factory=dict)

    def add(self, product: Product, keep: np.ndarray | None) -> None:
        """`keep`: [n_tokens] bool, or None for all."""
        if product.experts is not None:
            self._add_experts(product, product.experts, keep)
        else:
            self._add_rows(product, keep)

    def _entry(self, name: str, n_matrices: int, n_per_row: int, n_counts: int) -> Entry:
        if name not in self.entries:
            self.entries[name] = Entry(np.zeros((n_matrices, n_per_row), np.float32), np.zeros(n_counts, np.int64))
        entry = self.entries[name]
        if len(entry.counts) == 1 < n_counts and entry.sums.size == n_matrices * n_per_row:  # from a .dat file
            entry = self.entries[name] = Entry(entry.sums.reshape(n_matrices, -1), np.repeat(entry.counts, n_counts))
        if entry.sums.shape != (n_matrices, n_per_row):
            raise IntegrityError(f"{quote(name)} is used with rows of {entry.sums.shape[1]} and of {n_per_row}")
        return entry

    def _add_rows(self, product: Product, keep: np.ndarray | None) -> None:
        rows = product.rows  # [ne3, ne2, n_rows, n_per_row]
        entry = self._entry(product.name, product.n_matrices, rows.shape[-1], 1)
        for i, part in enumerate(rows.reshape(-1, *rows.shape[2:])):
            _accumulate(entry.sums[i % product.n_matrices], part if keep is None else part[keep])
        n_rows = rows[..., 0].size if keep is None else int(keep.sum()) * rows.shape[0] * rows.shape[1]
        entry.counts += n_rows // product.n_matrices

    def _add_experts(self, product: Product, experts: np.ndarray, keep: np.ndarray | None) -> None:
        rows = product.rows  # [n_tokens, 1 or n_used, n_per_row]
        entry = self._entry(product.name, product.n_matrices, rows.shape[-1], product.n_matrices)
        for expert in np.unique(experts if keep is None else experts[keep]):
            slots, tokens = np.nonzero(expert == experts.T)
            if keep is not None:
                slots, tokens = slots[keep[tokens]], tokens[keep[tokens]]
            _accumulate(entry.sums[expert], rows[tokens, slots % rows.shape[1]])
            entry.counts[expert] += len(tokens)


def _accumulate(sums: np.ndarray, rows: np.ndarray) -> None:
    """Row after row in float32, the order in which llama-imatrix adds."""
    np.add.reduce(np.concatenate([sums[None], rows * rows]), axis=0, out=sums)


def measure_importance(
    path: Path,
    text: str,
    policy: DepthPolicy,
    n_ctx: int = 512,
    n_chunks: int = -1,
    n_batch: int = 2048,
    *,
    process_output: bool = False,
    start: dict[str, Entry] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Importance:
    """Evaluate `text` in chunks of `n_ctx` tokens and add to `start`; `settings` go to Engine.load."""
    from ..llama.evaluation import Watcher
    from .engine import Engine

    if n_ctx < FEWEST_ROWS:
        raise UsageError(f"an importance matrix needs a context of at least {FEWEST_ROWS} tokens, not {n_ctx}")
    began, found = time.monotonic(), Importance(n_ctx, dict(start or {}))
    counter = _Counter(found, process_output)
    watcher = Watcher(counter.wants, counter.take)
    n_seq = sequences_at_once(n_batch, n_ctx)
    settings |= {"n_seq": n_seq, "kv_unified": n_seq == 1, "on_node": watcher.callback}
    with Engine.load(path, n_ctx=n_seq * n_ctx, n_batch=n_seq * min(n_batch, n_ctx), **settings) as engine:
        engine.set_depth(policy)
        tokens = engine.tokenize(text)
        if len(tokens) < 2 * n_ctx:
            raise UsageError(
                f"the text has {len(tokens)} tokens, a context of {n_ctx} needs at least {2 * n_ctx}",
                hint="give a longer text with -f, or a smaller context with -c",
            )
        windows = plan_windows(len(tokens), n_ctx, n_chunks, n_batch)
        bos = engine.model.bos if engine.model.add_bos else None
        for steps in steps_of(tokens, windows, bos):
            _evaluate(engine, steps, watcher, counter)
            found.n_chunks = min(found.n_chunks + n_seq, windows.n_chunks)
            if progress:
                progress(found.n_chunks, windows.n_chunks)
        found.depth = engine.depth_stats().as_json(policy)
    found.seconds = time.monotonic() - began
    return found


def _evaluate(engine: Engine, steps: list[Any], watcher: Any, counter: _Counter) -> None:
    """A batch of chunks; where tokens may skip, once more, for a layer's products come before its tokens are known."""
    context = engine.context
    decided: list[np.ndarray] = []  # of each step: [n_tokens, n_gate]
    if engine.info.gates:
        context.set_dense()
        context.set_trace(True)
        context.clear()
        for step in steps:
            _decode(context, step)
            if trace := context.trace():
                decided.append(trace.run)
        context.set_trace(False)
    context.clear()
    watcher.is_on = True
    try:
        for i, step in enumerate(steps):
            counter.begin(_used(engine, decided[i]) if decided else None)
            _decode(context, step)
            if watcher.error:
                raise watcher.error
    finally:
        watcher.is_on = False


def _decode(context: Any, step: Any) -> None:
    wanted = np.ones(len(step.tokens), np.int8)
    if not context.decode(step.tokens, step.pos, step.seq_ids, wanted):
        raise Interrupted("stopped; nothing was written")


def _used(engine: Engine, run: np.ndarray) -> Mask:
    """From the decisions of one decode, [n_tokens, n_gate] bool, to who used which matrix."""
    from ..llama.depth import KVPolicy, Scope

    gates, info = engine.model.gates, engine.model.depth
    projects = info is not None and info.kv_policy == KVPolicy.PROJECT

    def mask(name: str) -> np.ndarray | None:
        match = _LAYER.fullmatch(name)
        if not match:
            return None
        layer, kind = int(match[1]), match[2]
        half = Scope.ATTN if kind.startswith("attn") else Scope.FFN
        stayed = [run[:, i] for i, gate in enumerate(gates) if gate.is_exit and gate.layer <= layer]
        own = [(i, gate) for i, gate in enumerate(gates) if gate.layer <= layer < gate.layer + gate.span]
        ran = [run[:, i] for i, gate in own if not gate.is_exit and gate.scope in (Scope.LAYER, half)]
        if kind.startswith("depth_skip"):
            return _all([*stayed, ~_all(ran)]) if ran else None
        if projects and kind in ("attn_k", "attn_v"):
            return None
        return _all([*stayed, *ran]) if stayed or ran else None

    return mask


def _all(masks: list[np.ndarray]) -> np.ndarray:
    return np.logical_and.reduce(masks)


class _Counter:
    """Which tokens a product's rows belong to: the graph sees a batch in several parts, each with all layers."""

    def __init__(self, found: Importance, process_output: bool) -> None:
        self.found, self.process_output = found, process_output
        self.mask: Mask | None = None
        self.seen: dict[str, int] = {}  # rows of this decode so far, by matrix

    def begin(self, mask: Mask | None) -> None:
        self.mask, self.seen = mask, {}

    def wants(self, name: str) -> bool:
        if name.startswith("blk."):
            return ".depth_gate" not in name
        return self.process_output and name == "output.weight"

    def take(self, product: Product) -> None:
        n_rows = product.rows.shape[0] if product.experts is not None else product.rows.shape[2]
        start = self.seen.get(product.name, 0)
        self.seen[product.name] = start + n_rows
        if product.experts is None and n_rows < FEWEST_ROWS:
            return
        used = self.mask(product.name) if self.mask else None
        self.found.add(product, None if used is None else used[start : start + n_rows])
