"""`liquid gates train`: from a base and text to a gate pack, in stages that each leave their result in a state folder.

    text      the base's own answers, if asked for              own.jsonl
    harvest   one pass of the full base, with gradients          chunks/NNNN.pt
    local     adapters, gates and the choice of layers           local.pt
    tune      adapters end to end under hard decisions           tune.pt
    pack      gates again, biases, threshold, calibration        PACK, PACK.json

With `init`, adapters and the choice of layers come from a pack and the local stage fits gates alone. A run that was
stopped goes on where it was with `resume`. Knows the order; the mathematics is in `local`, `tune`, `judge` and
`balance`, what is written in `result`.
"""

from __future__ import annotations

import copy
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
from .data import Row, Rows, Source
from .judge import Judge
from .local import Harvest, Harvested, fit_adapters, fit_gates, harvest
from .network import Gates, Network, load_base
from .result import finish, held_out_rows, read_gates, write_gates
from .tune import Tuner
from .vocab import Vocabulary

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """What a run is asked for; names as on the command line."""

    data: tuple[str, ...] = ("self:60000",)
    valid: tuple[str, ...] = ()  # biases, threshold and calibration are chosen on these
    valid_rows: int = 8  # of each
    balance: int = 1  # rounds of balancing the biases on them
    init: str = ""  # a pack to go on from
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
        self.initial = read_gates(Path(o.init), self.network) if o.init else None
        self.candidates = self.initial.layers if self.initial else list(o.layers) or list(range(2, n_layer - 2))
        if not self.candidates or min(self.candidates) < 1 or max(self.candidates) >= n_layer:
            raise UsageError(f"--layers: layers from 1 to {n_layer - 1} were expected")

    @property
    def prior(self) -> Tensor | None:
        return self.initial.weight.detach() if self.initial else None

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
    o, rows = run.options, run.rows(run.options.seed)
    done = 0
    while done < o.harvest_tokens:
        row, path = rows.take(1)[0], run.state / "chunks" / f"{rows.n_rows - 1:05d}.pt"
        done += len(row.tokens)
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(o.seed * 100003 + rows.n_rows)
        found = harvest(run.network, *tensors_of(row), run.candidates, generator)
        _save(asdict(found), path)
        run.tell(min(done, o.harvest_tokens), o.harvest_tokens, "pricing layers at full depth")


def tensors_of(row: Row) -> tuple[Tensor, Tensor]:  # [1, T] each
    """A row's tokens, and which of its predictions count."""
    return torch.tensor([row.tokens]), torch.tensor([row.counts])


def load_harvested(run: Run, layers: list[int]) -> Harvested:
    picks = [run.candidates.index(layer) for layer in layers]
    chunks = []
    for path in sorted((run.state / "chunks").glob("*.pt")):
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
    gates = copy.deepcopy(run.initial) or Gates(run.candidates, run.base.shape.n_embd, o.adapter_size, o.seed)
    rows, held_out = _split(data)
    n_gates = len(run.candidates) if run.initial else o.n_gates
    tell = lambda what, total: lambda epoch, _: run.tell(epoch + 1, total, what)  # noqa: E731
    if not run.initial:
        told = tell("adapters, all tokens", o.epochs)
        fit_adapters(gates, data, rows, epochs=o.epochs, lr=o.local_lr, seed=o.seed, report=told)
    fit_gates(gates, data, gates_cost(data, gates), prior=run.prior)
    level, _ = skip_level(data, gates, o.target, n_gates)
    weight = (level - logits(data, gates)).mul_(1.5).sigmoid_().add_(0.05)
    epochs, lr = max(2, o.epochs // 2), o.local_lr / (5 if run.initial else 2)
    told = tell("adapters, tokens that skip", epochs)
    fit_adapters(gates, data, rows, epochs=epochs, lr=lr, weight=weight, seed=o.seed + 1, report=told)
    fit_gates(gates, data, gates_cost(data, gates), prior=run.prior)
    level, kept = skip_level(data, gates, o.target, n_gates)
    figures = _local_figures(data, gates, held_out, level, kept)
    with torch.no_grad():
        gates.bias.sub_(level)
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
        seen = tuner.step(*tensors_of(rows.take(1)[0]), n_steps)
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


def write_result(run: Run, out: Path) -> dict[str, Any]:
    """Stage `pack`: gates once more for the final adapters, what held-out text decides, the pack and its report."""
    started, o = time.time(), run.options
    gates, curve = finished_gates(run)
    if curve and not o.gate_lr:
        data = load_harvested(run, gates.layers)
        fit_gates(gates, data, gates_cost(data, gates), prior=run.prior)
        with torch.no_grad():
            gates.bias.sub_(skip_level(data, gates, o.target, len(gates.layers))[0])
    valid = [Source.parse(text) for text in o.valid]
    rows = held_out_rows(valid, run.vocab, run.own, o.n_ctx, o.valid_rows) or {"data": run.rows(o.seed + 9).take(8)}
    kinds = {name: Judge(run.network, some, min(gates.layers)) for name, some in rows.items()}
    found, pairs = finish(gates, kinds, o.target, o.balance, run.tell)
    write_gates(
        run.base_path,
        out,
        gates,
        n_layer=run.base.shape.n_layer,
        always_run_tokens=o.always_run_tokens,
        pairs=pairs,
    )
    options = asdict(o) | {name: [_named(text) for text in getattr(o, name)] for name in ("data", "valid")}
    report = {
        "options": options | {"init": Path(o.init).name},
        "base": {"file": run.base_path.name},
        "gates": gates.layers,
        "threshold": 0.5,
        **found,
        "local": load_local(run)[1],
        "curve": curve,
        "pack_stage_seconds": round(time.time() - started, 1),
    }
    report = json.loads(json.dumps(report))
    with atomic_output(out.with_name(out.name + ".json")) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _named(source: str) -> str:
    """A --data argument without its folders."""
    return source if source.startswith("self:") else Path(source).name


def _save(state: dict, path: Path) -> None:
    with atomic_output(path) as part:
        torch.save(state, part)
