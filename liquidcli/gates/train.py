"""`liquid gates train`: from a base and text to a gate pack, in stages that each leave their result in a state folder.

    text      the base's own answers, if asked for              own.jsonl
    harvest   one pass of the full base, with gradients          chunks/NNNN.pt
    local     adapters, gates and the choice of layers           local.pt
    tune      adapters end to end under hard decisions           tune.pt
    pack      gates again, threshold, calibration, report        PACK, PACK.json

A run that was stopped goes on where it was with `resume`. Knows the order and what is written; the mathematics is in
`local`, `tune` and `judge`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LiquidError, UsageError
from ..files import atomic_output
from ..gguf_file import open_gguf
from .data import Rows, Source, own_answers
from .identity import base_identity
from .judge import Judge, calibrate, threshold_for
from .local import Harvest, Harvested, fit_adapters, fit_gates, harvest
from .network import Gates, Network, load_base
from .pack import Depth, Pack, write_pack
from .tune import Tuner
from .vocab import Vocabulary

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """What a run is asked for; names as on the command line."""

    data: tuple[str, ...] = ("self:60000",)
    valid: tuple[str, ...] = ()  # text files: thresholds are chosen and calibrated on these
    target: float = 0.93
    layers: tuple[int, ...] = ()  # candidates; empty: all but the first two and the last two
    n_gates: int = 12  # how many of the candidates are kept
    adapter_size: int = 64
    always_run_tokens: int = 4
    harvest_tokens: int = 30000
    epochs: int = 10
    tune_tokens: int = 80000
    lr: float = 1e-3  # of the second stage
    gate_lr: float = 0.0
    local_lr: float = 5e-3
    n_ctx: int = 512
    seed: int = 1
    threads: int | None = None
    kv: str = "project"
    span: int = 1
    scope: str = "layer"
    rank: int = 0

    def check(self) -> None:
        """UsageError for what the format knows and this trainer does not do."""
        for name, only in (("kv", "project"), ("span", 1), ("scope", "layer"), ("rank", 0)):
            if getattr(self, name) != only:
                raise UsageError(f"--{name} {getattr(self, name)}: this version trains --{name} {only}")
        if not 0.3 <= self.target < 1:
            raise UsageError(f"--target {self.target:.0%}: a share between 30% and 99% was expected")
        if self.adapter_size % 32 or self.adapter_size < 32:
            raise UsageError(f"--adapter-size {self.adapter_size}: a multiple of 32 was expected")


@dataclass
class Run:
    """One training run: its files, its inputs, and what it has found so far."""

    base_path: Path
    state: Path
    options: Options
    progress: Progress | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        o = self.options
        o.check()
        self.sources = [Source.parse(text) for text in o.data]
        torch.set_num_threads(o.threads or 2)
        self.vocab = Vocabulary(self.base_path)
        self.base = load_base(self.base_path)
        self.network = Network(self.base, o.always_run_tokens, o.n_ctx)
        n_layer = self.base.shape.n_layer
        self.candidates = list(o.layers) or list(range(2, n_layer - 2))
        if not self.candidates or min(self.candidates) < 1 or max(self.candidates) >= n_layer:
            raise UsageError(f"--layers: layers from 1 to {n_layer - 1} were expected")

    @property
    def own(self) -> Path:
        return self.state / "own.jsonl"

    def tell(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)

    def rows(self, seed: int) -> Rows:
        return Rows(self.sources, self.vocab, self.own, self.options.n_ctx, seed)


def train(
    base: Path,
    out: Path,
    options: Options,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a pack for `base` (a GGUF or a checkpoint folder) and write it to `out`; the report is returned."""
    out, state = Path(out), Path(state or f"{out}.state")
    options.check()
    _open_state(state, options, resume)
    run = Run(_as_gguf(Path(base), state, progress), state, options, progress)
    write_own_text(run)
    harvest_chunks(run)
    fit_local(run)
    tune(run)
    return write_result(run, out)


def _open_state(state: Path, options: Options, resume: bool) -> None:
    if state.exists() and any(state.iterdir()) and not resume:
        raise UsageError(f"{state} holds an earlier run", hint="--resume goes on with it; or name another -o")
    (state / "chunks").mkdir(parents=True, exist_ok=True)
    told = json.loads(json.dumps(asdict(options)))
    kept = state / "options.json"
    if kept.exists():
        before = json.loads(kept.read_text())
        changed = [name for name in told if told[name] != before.get(name, told[name]) and name not in ("threads",)]
        if changed:
            raise UsageError(
                f"the run in {state} was begun with other {', '.join(changed)}",
                hint="repeat the command with the same options and --resume",
            )
    kept.write_text(json.dumps(told, indent=1))


def _as_gguf(base: Path, state: Path, progress: Progress | None) -> Path:
    """A checkpoint folder is converted once, to F32 in the state folder."""
    if not base.is_dir():
        return base
    from .. import converters

    out = state / "base-f32.gguf"
    if not out.exists():
        converters.run(converters.plan(base, outtype="f32"), out, progress=progress)
    return out


def write_own_text(run: Run) -> None:
    from .selftext import generate

    for source in run.sources:
        if source.path is None:
            generate(
                run.base_path,
                run.own,
                source.n_tokens,
                seed=run.options.seed,
                n_threads=torch.get_num_threads(),
                progress=run.progress,
            )


def harvest_chunks(run: Run) -> None:
    """Stage `harvest`: a chunk a row, until there are enough tokens."""
    o, folder = run.options, run.state / "chunks"
    total = -(-o.harvest_tokens // o.n_ctx)
    rows = run.rows(o.seed)
    for i in range(total):
        tokens, path = torch.tensor(rows.take(1)), folder / f"{i:04d}.pt"
        if path.exists():
            continue
        found = harvest(run.network, tokens, run.candidates, torch.Generator().manual_seed(o.seed * 100003 + i))
        _save(asdict(found), path)
        run.tell(i + 1, total, "pricing layers at full depth")


def load_harvested(run: Run, layers: list[int]) -> Harvested:
    total = -(-run.options.harvest_tokens // run.options.n_ctx)
    picks = [run.candidates.index(layer) for layer in layers]
    chunks = []
    for path in sorted((run.state / "chunks").glob("*.pt"))[:total]:
        found = torch.load(path, mmap=True)
        chunks.append(Harvest(**{name: value[picks] for name, value in found.items()}))
    norms = {
        name: torch.stack([run.base.layers[i][name] for i in layers])[:, None] for name in ("attn_norm", "ffn_norm")
    }
    return Harvested(chunks, norms, run.base.shape.eps)


def fit_local(run: Run) -> None:
    """Stage `local`: adapters (for all tokens, then for those that would skip), gates, the layers worth a gate."""
    o, path = run.options, run.state / "local.pt"
    if path.exists():
        return
    data = load_harvested(run, run.candidates)
    gates = Gates(run.candidates, run.base.shape.n_embd, o.adapter_size, o.seed)
    train_rows, held_out = _split(data)
    tell = lambda what: lambda epoch, _: run.tell(epoch + 1, o.epochs, what)  # noqa: E731
    fit_adapters(
        gates, data, train_rows, epochs=o.epochs, lr=o.local_lr, seed=o.seed, report=tell("adapters, all tokens")
    )
    fit_gates(gates, data, gates_cost(data, gates))
    level, _ = skip_level(data, gates, o.target, o.n_gates)
    weight = (level - logits(data, gates)).mul_(1.5).sigmoid_().add_(0.05)
    fit_adapters(
        gates,
        data,
        train_rows,
        epochs=max(2, o.epochs // 2),
        lr=o.local_lr / 2,
        weight=weight,
        seed=o.seed + 1,
        report=tell("adapters, tokens that skip"),
    )
    fit_gates(gates, data, gates_cost(data, gates))
    level, kept = skip_level(data, gates, o.target, o.n_gates)
    figures = _local_figures(data, gates, held_out, level, kept)
    with torch.no_grad():
        gates.bias -= level
    _save({"gates": gates.subset(kept).state_dict(), "layers": kept, "figures": figures}, path)


def _split(data: Harvested) -> tuple[slice, slice]:
    cut = int(data.n_rows * 0.9)
    return slice(0, cut), slice(cut, data.n_rows)


def gates_cost(data: Harvested, gates: Gates) -> Tensor:
    return data.cost(gates, slice(0, data.n_rows))


def logits(data: Harvested, gates: Gates) -> Tensor:  # [L, N]
    with torch.no_grad():
        parts = [
            torch.bmm(data.input("attn_norm", slice(i, i + 2048)), gates.weight[:, :, None])[:, :, 0]
            for i in range(0, data.n_rows, 2048)
        ]
        return torch.cat(parts, 1) + gates.bias[:, None]


def skip_level(data: Harvested, gates: Gates, target: float, n_gates: int) -> tuple[float, list[int]]:
    """The log cost below which tokens skip so that `target` is met, and the layers that then skip most."""
    z, n_layer = logits(data, gates), max(gates.layers) + 3
    wanted = (1 - target) * n_layer
    rows = list(range(len(gates.layers)))
    for keep in (len(rows), n_gates):
        z_kept = z[rows]
        level = float(z_kept.flatten().kthvalue(max(1, min(z_kept.numel() - 1, int(wanted * z.shape[1])))).values)
        share = (z_kept < level).float().mean(1)
        rows = [rows[i] for i in share.argsort(descending=True)[:keep].tolist()]
    return level, sorted(gates.layers[i] for i in rows[:n_gates])


def _local_figures(data: Harvested, gates: Gates, rows: slice, level: float, kept: list[int]) -> list[dict]:
    """Per layer, on rows the adapters never saw: cost of skipping every token, none, and the tokens the gate picks."""
    with_adapter, bare, z = data.cost(gates, rows), data.cost(None, rows), logits(data, gates)[:, rows]
    figures = []
    for i, layer in enumerate(gates.layers):
        picked = z[i] < level
        chosen = float(with_adapter[i][picked].mean()) if picked.any() else math.nan
        figures.append(
            {
                "layer": layer,
                "kept": layer in kept,
                "skip_share": round(float(picked.float().mean()), 4),
                "cost_bare": round(float(bare[i].mean()), 5),
                "cost": round(float(with_adapter[i].mean()), 5),
                "cost_of_skipped": None if math.isnan(chosen) else round(chosen, 5),
            }
        )
    return figures


def load_local(run: Run) -> tuple[Gates, list[dict]]:
    kept = torch.load(run.state / "local.pt")
    gates = Gates(kept["layers"], run.base.shape.n_embd, run.options.adapter_size)
    gates.load_state_dict(kept["gates"])
    return gates, kept["figures"]


def tune(run: Run, *, save_every: int = 10) -> None:
    """Stage `tune`: end to end, row by row; the state is saved every few steps."""
    o, path = run.options, run.state / "tune.pt"
    gates, _ = load_local(run)
    n_steps = -(-o.tune_tokens // o.n_ctx)
    tuner = Tuner(run.network, gates, o.lr, o.gate_lr, o.target, seed=o.seed + 2)
    curve: list[dict] = []
    if path.exists():
        before = torch.load(path)
        tuner.load_state(before["tuner"])
        curve = before["curve"]
    rows = run.rows(o.seed + 1)
    rows.skip(tuner.done)
    while tuner.done < n_steps:
        seen = tuner.step(torch.tensor(rows.take(1)), n_steps)
        curve.append({"step": tuner.done, **{k: round(v, 5) for k, v in asdict(seen).items()}})
        if not math.isfinite(seen.kl):
            raise LiquidError(f"training diverged at step {tuner.done}", hint="a smaller --lr")
        if tuner.done % save_every == 0 or tuner.done == n_steps:
            _save({"tuner": tuner.state(), "curve": curve}, path)
        run.tell(tuner.done, n_steps, f"end to end, KL {seen.kl:.3f} at {seen.executed_fraction:.1%}")


def finished_gates(run: Run) -> tuple[Gates, list[dict]]:
    gates, _ = load_local(run)
    if not (run.state / "tune.pt").exists():
        return gates, []
    kept = torch.load(run.state / "tune.pt")
    gates.load_state_dict(kept["tuner"]["gates"])
    return gates, kept["curve"]


def held_out_rows(run: Run, n_each: int = 8) -> list[Tensor]:
    """Text that nothing was trained on: the `valid` files, and the held-out tenth of the base's own answers."""
    o, rows = run.options, []
    for name in o.valid:
        tokens = run.vocab.tokenize(Path(name).read_text(errors="replace"))
        step = max(o.n_ctx, (len(tokens) - o.n_ctx) // n_each)
        rows += [tokens[i : i + o.n_ctx] for i in range(0, len(tokens) - o.n_ctx, step)][:n_each]
    if run.own.exists():
        rows += [row[: o.n_ctx] for row in own_answers(run.own, run.vocab, held_out=True) if len(row) > 100][:n_each]
    return [torch.tensor(row) for row in rows or run.rows(o.seed + 9).take(n_each)]


def write_result(run: Run, out: Path) -> dict[str, Any]:
    """Stage `pack`: gates once more for the final adapters, the threshold, the calibration, the pack and its report."""
    started, o = time.time(), run.options
    gates, curve = finished_gates(run)
    if curve and not o.gate_lr:
        data = load_harvested(run, gates.layers)
        fit_gates(gates, data, gates_cost(data, gates))
    judge = Judge(run.network, held_out_rows(run), min(gates.layers))
    with torch.no_grad():
        gates.bias -= threshold_for(judge, gates, o.target)
    score = judge.score(gates)
    pairs = calibrate(judge, gates)
    _write_pack(run, gates, pairs, out)
    local = load_local(run)[1]
    report = {
        "options": asdict(o),
        "base": {"file": run.base_path.name},
        "gates": gates.layers,
        "threshold": 0.5,
        "held_out": score.as_json(),
        "calibration": [{"threshold": t, "executed_fraction": round(s, 5)} for t, s in pairs],
        "local": local,
        "curve": curve,
        "pack_stage_seconds": round(time.time() - started, 1),
    }
    report = json.loads(json.dumps(report))
    report["options"]["data"] = [Path(d).name if not d.startswith("self:") else d for d in o.data]
    report["options"]["valid"] = [Path(d).name for d in o.valid]
    with atomic_output(out.with_name(out.name + ".json")) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _write_pack(run: Run, gates: Gates, pairs: list[tuple[float, float]], out: Path) -> None:
    spans = [int(i in gates.layers) for i in range(run.base.shape.n_layer)]
    depth = Depth(
        gate_span=tuple(spans),
        threshold=0.5,
        always_run_tokens=run.options.always_run_tokens,
        calibration_threshold=tuple(t for t, _ in pairs),
        calibration_executed_fraction=tuple(s for _, s in pairs),
    )
    tensors = {}
    for i, layer in enumerate(gates.layers):
        tensors[f"blk.{layer}.depth_gate.weight"] = gates.weight[i].detach().numpy()
        tensors[f"blk.{layer}.depth_gate.bias"] = gates.bias[i : i + 1].detach().numpy()
        for name in ("skip_gate", "skip_up", "skip_down"):
            tensors[f"blk.{layer}.depth_{name}.weight"] = getattr(gates, name)[i].detach().numpy().T
    with open_gguf(run.base_path) as f:
        name = f"depth gates for {f.metadata.get('general.name', run.base_path.stem)}"
        write_pack(out, Pack(base_identity(f), depth, tensors, name))


def _save(state: dict, path: Path) -> None:
    with atomic_output(path) as part:
        torch.save(state, part)
