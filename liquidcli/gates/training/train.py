"""`liquid gates train`: from a base and text to a gate pack, in stages that each leave their result in a state folder.

    text      the base's own answers, if asked for              own.jsonl, own-greedy.jsonl
    harvest   one pass of the full base, with gradients          chunks/NNNN.pt
    local     adapters, gates and the choice of layers           local.pt
    tune      adapters end to end under hard decisions           tune.pt
    settle    gates once more, for the final adapters            gates.pt
    pack      biases, threshold, calibration                     PACK, PACK.json

With `init`, adapters and the choice of layers come from a pack and the local stage fits gates alone, or nothing. A run
that was stopped goes on where it was with `resume`; the chunks, by far the largest, are deleted when the gates are
settled.
Knows the order; the mathematics is in `local`, `tune`, `judge` and `balance`, what is written in `result`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LiquidError, UsageError
from ...files import atomic_output, check_apart, output_target
from ...gate_layout import KV_POLICIES
from ..pack import read_pack
from .data import Row, Rows, Source, check_ids
from .judge import Judge
from .local import harvest
from .local_stage import fit_local, load_harvested, load_local, price_gates, skip_level
from .losses import SampledHead
from .network import Gates, Network, load_base
from .options import FROM_INIT, Options
from .result import finish, held_out_rows, read_gates, write_gates
from .state import CONVERTED, SETTLED, load, opened, save
from .tune import Tuner
from .vocab import Vocabulary

Progress = Callable[[int, int, str], None]
SECONDS_BETWEEN_SAVES = 10.0
STEPS_TOLD = 20  # one step's loss jumps: its rows are as they come
TRAINED_ON = "trained on"  # the kind of rows that are not held out


@dataclass
class Run:
    """One training run: its files, its inputs, and what it has found so far."""

    base_path: Path
    state: Path
    options: Options
    progress: Progress | None = None

    def __post_init__(self) -> None:
        o = self.options
        o.check()
        self.sources = [Source.parse(text) for text in o.data]
        self.valid = [Source.parse(text, "--valid") for text in o.valid]
        torch.set_num_threads(o.threads or 2)
        if _device(o.device) != "cpu":
            torch.set_default_device(_device(o.device))
        self.vocab = Vocabulary(self.base_path)
        self.base = load_base(self.base_path)
        self.network = Network(self.base, o.always_run_tokens, o.n_ctx, self.kv)
        if o.rank > self.base.shape.n_embd:
            raise UsageError(f"--rank {o.rank}: at most {self.base.shape.n_embd}, the width of the base")
        self.initial = read_gates(Path(o.init), self.network) if o.init else None
        self.candidates = self.initial.places if self.initial else o.places(self.base.shape.n_layer)
        self._check_reach()

    def _check_reach(self) -> None:
        """UsageError where all gates together, shut for every token, would still run more than the target."""
        o, n_layer = self.options, self.base.shape.n_layer
        n_gates = len(self.candidates) if self.initial else o.kept(len(self.candidates))
        switched = sum(sorted(map(self.network.worth, self.candidates), reverse=True)[:n_gates])
        least = round(1 - switched / n_layer, 9)
        if o.target < least:
            found = f"gates on {switched:.3g} of {n_layer} layers leave {math.ceil(100 * least)}% that always run"
            hint = "" if self.initial else ", a larger --n-gates, or more --layers to choose from"
            raise UsageError(f"--target {o.target:.0%}: {found}", hint=f"a higher --target{hint}")

    @functools.cached_property
    def kv(self) -> str:
        """The policy asked for, else that of the pack to go on from."""
        o = self.options
        return o.kv or (read_pack(o.init).depth.kv_policy if o.init else KV_POLICIES[0])

    @property
    def prior(self) -> Tensor | None:
        return self.initial.weight.detach() if self.initial else None

    def worth(self, gates: Gates) -> Tensor:  # [n_gate], layers that each gate switches
        return torch.tensor([self.network.worth(place) for place in gates.places])

    @property
    def own(self) -> Path:
        return self.state / "own.jsonl"

    def tell(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)

    @functools.cached_property
    def texts(self) -> Rows:
        """Read and rendered once; there to be read only when the base's own text is written."""
        rows = Rows(self.sources, self.vocab, self.own, self.options.n_ctx, self.options.seed)
        for source, found in zip(self.sources, rows.documents, strict=True):
            check_ids(found, len(self.base.embed), source.name)
        return rows

    def rows(self, seed: int) -> Rows:
        return self.texts.anew(seed)

    def held_out(self) -> dict[str, list[Row]]:
        """By kind, the rows that the last stage judges; text that is trained on where none is held out."""
        o = self.options
        own = {f"self{':greedy' * source.greedy}": source.own(self.own) for source in self.sources if not source.path}
        found = held_out_rows(self.valid, self.vocab, own, o.n_ctx, o.valid_rows)
        for name, rows in found.items():
            check_ids(rows, len(self.base.embed), name)
        return found or {TRAINED_ON: self.rows(o.seed + 9).take(o.valid_rows)}


def train(
    base: Path,
    out: Path,
    options: Options,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a pack for `base` (a GGUF or a checkpoint folder) and write it to `out`; the report is returned.

    `note` is told that there was nothing to resume.
    """
    base, out, state = Path(base), Path(out), Path(state or f"{out}.state")
    options.check()
    _device(options.device)
    texts = [source.path for source in map(Source.parse, options.data) if source.path]
    _check_output(out, base, texts, options)
    with opened(state, options, base, texts, resume) as goes_on:
        if note and resume and not goes_on:
            note(f"there is nothing to resume in {state}: the run starts from the beginning")
        run = Run(_as_gguf(base, state, progress), state, options, progress)
        with contextlib.closing(run.vocab):
            write_own_text(run)
            held_out = run.held_out()  # before the hours: it may be no text at all
            if not (state / SETTLED).exists():
                harvest_chunks(run)
                fit_local(run)
                tune(run)
                settle(run)
            shutil.rmtree(state / "chunks", ignore_errors=True)
            return write_result(run, out, held_out)


def _check_output(out: Path, base: Path, texts: list[Path], options: Options) -> None:
    """UsageError where the pack would take the place of what it is made from; it is written hours later."""
    output_target(out)
    held_out = [source.path for source in (Source.parse(text, "--valid") for text in options.valid) if source.path]
    check_apart(out, base, Path(options.init) if options.init else None, *texts, *held_out)


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no such device here")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _as_gguf(base: Path, state: Path, progress: Progress | None) -> Path:
    """A checkpoint folder is converted once, to F32 in the state folder."""
    if not base.is_dir():
        return base
    from ... import converters

    out = state / CONVERTED
    if not out.exists():
        converters.run(converters.plan(base, outtype="f32"), out, progress=progress)
    return out


def write_own_text(run: Run) -> None:
    from .selftext import generate

    for source in run.sources:
        if source.path is None:
            generate(
                run.base_path,
                source.own(run.own),
                source.n_tokens,
                greedy=source.greedy,
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
        generator = torch.Generator(torch.get_default_device()).manual_seed(o.seed * 100003 + rows.n_rows)
        found = harvest(run.network, *tensors_of(row), run.candidates, generator)
        save({name: value.cpu() for name, value in asdict(found).items()}, path)
        run.tell(min(done, o.harvest_tokens), o.harvest_tokens, "pricing layers at full depth")


def tensors_of(row: Row) -> tuple[Tensor, Tensor]:  # [1, T] each
    """A row's tokens, and which of its predictions count."""
    return torch.tensor([row.tokens]), torch.tensor([row.counts])


def tune(run: Run) -> None:
    """Stage `tune`: end to end; the state is saved behind a step if the last save is a while ago."""
    o, path = run.options, run.state / "tune.pt"
    gates, _ = load_local(run)
    if not _tunes(run, gates):
        return
    gates.add_updates(run.base, o.rank, o.seed)
    curve: list[dict] = []
    n_tokens, rows = 0, run.rows(o.seed + 1)
    sampled = SampledHead(run.base.head, rows.words(), o.vocab_sample) if o.vocab_sample else None
    tuner = Tuner(
        run.network, gates, o.lr, o.gate_lr, o.target, seed=o.seed + 2, precision=o.precision, sampled=sampled
    )
    if path.exists():
        before = load(path)
        tuner.load_state(before["tuner"])
        curve, n_tokens = before["curve"], before["n_tokens"]
        rows.skip(before["n_rows"])
    saved = time.monotonic()
    while n_tokens < o.tune_tokens:
        batch = _batch(rows, min(o.batch_tokens, o.tune_tokens - n_tokens))
        seen = tuner.step([tensors_of(row) for row in batch], n_tokens / o.tune_tokens)
        n_tokens += sum(len(row.tokens) for row in batch)
        curve.append({"step": tuner.done, **{k: round(v, 5) for k, v in asdict(seen).items()}})
        keeps = time.monotonic() - saved > SECONDS_BETWEEN_SAVES or n_tokens >= o.tune_tokens
        if not math.isfinite(seen.kl) or (keeps and not gates.is_finite()):
            path.unlink(missing_ok=True)
            raise LiquidError(
                f"training diverged at step {tuner.done}",
                hint="with --resume and a smaller --lr this stage begins anew; the ones before it are kept",
            )
        if keeps:
            save({"tuner": tuner.state(), "curve": curve, "n_tokens": n_tokens, "n_rows": rows.n_rows}, path)
            saved = time.monotonic()
        kl, executed = (statistics.fmean(s[name] for s in curve[-STEPS_TOLD:]) for name in ("kl", "executed_fraction"))
        told = f"end to end, KL {kl:.3f} at {executed:.1%}"
        run.tell(min(n_tokens, o.tune_tokens), o.tune_tokens, told)


def _tunes(run: Run, gates: Gates) -> bool:
    """Whether stage `tune` trains anything, and so leaves a file."""
    o, adapts = run.options, gates.skip_gate.shape[2] and bool(gates.may_adapt.any())
    return bool(o.tune_tokens and (adapts or o.gate_lr or o.rank))


def _batch(rows: Rows, n_tokens: int) -> list[Row]:
    """Rows of at least `n_tokens` tokens together."""
    batch = rows.take(1)
    while sum(len(row.tokens) for row in batch) < n_tokens:
        batch += rows.take(1)
    return batch


def tuned_gates(run: Run) -> tuple[Gates, list[dict]]:
    gates, _ = load_local(run)
    if not _tunes(run, gates):
        return gates, []
    gates.add_updates(run.base, run.options.rank)
    kept = load(run.state / "tune.pt")
    gates.load_state_dict(kept["tuner"]["gates"])
    return gates, kept["curve"]


def settle(run: Run) -> None:
    """Stage `settle`: prices of what is skipped, and from them the gates, once more."""
    o = run.options
    gates, curve = tuned_gates(run)
    if curve and not o.gate_lr:
        data = load_harvested(run, gates.places)
        price_gates(run, data, gates)
        level, _ = skip_level(data, gates, o.target, len(gates.places), run.base.shape.n_layer, run.worth(gates))
        with torch.no_grad():
            gates.bias.sub_(level)
    save({"gates": gates.state_dict()}, run.state / SETTLED)


def write_result(run: Run, out: Path, held_out: dict[str, list[Row]]) -> dict[str, Any]:
    """Stage `pack`: what held-out text decides, the pack and its report."""
    started, o = time.time(), run.options
    gates, curve = tuned_gates(run)
    gates.load_state_dict(load(run.state / SETTLED)["gates"])
    kinds = {name: Judge(run.network, rows, min(gates.layers)) for name, rows in held_out.items()}
    found, pairs = finish(gates, kinds, o.target, o.balance, run.tell)
    write_gates(
        run.base_path,
        out,
        gates,
        n_layer=run.base.shape.n_layer,
        always_run_tokens=o.always_run_tokens,
        pairs=pairs,
        kv=run.kv,
    )
    options = asdict(o) | {name: [_named(text) for text in getattr(o, name)] for name in ("data", "valid")}
    options["n_gates"] = o.kept(len(run.candidates))
    options = {name: value for name, value in options.items() if not (o.init and name in FROM_INIT)}
    report = {
        "options": options | {"init": Path(o.init).name},
        "base": {"file": run.base_path.name},
        "gates": gates.layers,
        "places": [{"layer": place.layer, "span": place.span, "scope": place.scope} for place in gates.places],
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
