"""`liquid gates train|apply|show|report`: make gate packs, join them to a base, look at them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Interrupted, UsageError
from ..gates.training.options import N_GATES, Options
from ..ui.console import is_terminal, out
from .gates_report import report
from .options import Json, Quiet, option

_SECONDS_BETWEEN_LINES = 15.0
_GOES_ON = "the same command with --resume goes on where it was"

gates_app = typer.Typer(
    name="gates", help="Make a model adaptive: train, apply and inspect depth gates.", no_args_is_help=True,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _trained(name: str, metavar: str, words: str, *short: str, **limits: Any) -> Any:
    """The option that sets a field of `Options`, whose default its help names."""
    value = f"{Options.target:.0%}" if name == "target" else getattr(Options, name)
    default = " ".join(value) if isinstance(value, tuple) else value
    said = "" if default == "" or "Default:" in words else f" Default: {default}."
    return option(*short, f"--{name.replace('_', '-')}", metavar=metavar, help=f"{words}{said}", **limits)


Base = Annotated[Path, typer.Argument(metavar="BASE", show_default=False, help="A GGUF, or a checkpoint folder.")]
BaseFile = Annotated[Path, typer.Argument(metavar="BASE.gguf", show_default=False, help="The plain model.")]
PackFile = Annotated[Path, typer.Argument(metavar="GATES.gguf", show_default=False, help="The gate pack.")]
AnyFile = Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A gate pack or a liquid model.")]
Output = Annotated[Path, option("-o", "--output", metavar="FILE", help="Where to write.")]
_DATA = "self:N[:greedy]|FILE[:spaced][:chat][:lines=N], [:share=X]"
Data = Annotated[
    list[str] | None,
    _trained("data", _DATA, "Text to train on, repeatable: N tokens of the base's own text, or a file."),
]
Valid = Annotated[
    list[str] | None,
    option("--valid", metavar="FILE[:spaced][:chat][:lines=N]", help="Held-out text to calibrate on; repeatable."),
]
ValidRows = Annotated[int | None, _trained("valid_rows", "N", "Rows of each held-out text.", min=1)]
Balance = Annotated[int | None, _trained("balance", "N", "Rounds of balancing the gates on it.", min=0)]
Init = Annotated[Path | None, option("--init", metavar="GATES.gguf", help="A gate pack of BASE to go on from.")]
Target = Annotated[str | None, _trained("target", "NN%", "Share of layers that should run at the pack's threshold.")]
_LAYERS = "Layers that may get a gate. Default: all but the first and last two."
Layers = Annotated[str | None, _trained("layers", "A-B[,C...]", _LAYERS)]
_N_GATES = f"How many of them get one. Default: {N_GATES}, or all where there are fewer."
NGates = Annotated[int | None, _trained("n_gates", "N", _N_GATES, min=1)]
_ADAPTER = "Hidden units of an adapter: a multiple of 32; 0: none."
AdapterSize = Annotated[int | None, _trained("adapter_size", "M", _ADAPTER, min=0)]
_KV = "What skipped layers do about K and V. Default: project, or as in --init."
Kv = Annotated[str | None, _trained("kv", "project|drop", _KV)]
Span = Annotated[int | None, _trained("span", "N", "Layers under one gate.", min=1)]
_SCOPE = "What one gate switches; attn+ffn: either half."
Scope = Annotated[str | None, _trained("scope", "layer|attn|ffn|attn+ffn", _SCOPE)]
Rank = Annotated[int | None, _trained("rank", "R", "Rank of low-rank updates of the base; 0: none.", min=0)]
AlwaysRun = Annotated[int | None, _trained("always_run_tokens", "N", "First positions that run every layer.", min=0)]
Harvest = Annotated[int | None, _trained("harvest_tokens", "N", "Tokens of the first stage.", min=0)]
Epochs = Annotated[int | None, _trained("epochs", "N", "Passes over what the first stage kept.", min=1)]
Tune = Annotated[int | None, _trained("tune_tokens", "N", "Tokens of the end-to-end stage.", min=0)]
Batch = Annotated[int | None, _trained("batch_tokens", "N", "Tokens of one step of that stage, at least.", min=1)]
Lr = Annotated[float | None, _trained("lr", "X", "Learning rate of the end-to-end stage.")]
GateLr = Annotated[float | None, _trained("gate_lr", "X", "The gates' in that stage; 0: they are left alone there.")]
Device = Annotated[str | None, _trained("device", "auto|cpu|cuda", "Where PyTorch computes.")]
_PRECISION = "Of that stage's matrix products; gates, norms and the head are float32."
Precision = Annotated[str | None, _trained("precision", "float32|bfloat16", _PRECISION)]
_SAMPLE = "In that stage the loss sees the texts' words and N others, drawn for each step; 0: the whole vocabulary."
VocabSample = Annotated[int | None, _trained("vocab_sample", "N", _SAMPLE, min=0)]
Seed = Annotated[int | None, _trained("seed", "N", "Seed of text, sampling and order.", "-s", min=0)]
Threads = Annotated[int | None, option("-t", "--threads", metavar="N", min=1, help="Threads to use. Default: 2.")]
State = Annotated[
    Path | None, option("--state", metavar="DIR", help="Folder of the run's state. Default: beside the pack.")
]
Resume = Annotated[bool, option("--resume", help="Go on with the run in the state folder.")]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`8-11,25` as numbers."""
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"--layers {text}: a list like 8-20 or 5,7,9-12 was expected")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(sorted(set(layers)))


def parse_share(text: str | None) -> float | None:
    """`75%` as 0.75; a bare number is refused, as everywhere."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", text)
    if not match:
        raise UsageError(f"--target {text}: a share like 75% was expected")
    return float(match[1]) / 100


@contextmanager
def _told(what: str, total: int | None, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal; elsewhere a line with the time left now and then."""
    import sys
    import time

    started: dict[str, tuple[int, float]] = {}
    told = [0.0]

    def line(done: int, total: int, what: str) -> None:
        stage, now = what.split(",")[0], time.monotonic()
        first_done, first_time = started.setdefault(stage, (done, now))
        if now - told[0] < _SECONDS_BETWEEN_LINES and done < total:
            return
        told[0] = now
        pace = (now - first_time) / (done - first_done) if done > first_done else None
        left = f", {_minutes(pace * (total - done))} left" if pace and done < total else ""
        out.talk(f"{what}: {done}/{total}{left}")

    if unit == "steps" and not is_terminal(sys.stderr):
        yield line
        return
    with out.progress(what, total, unit=unit) as bar:
        yield lambda done, total, what: bar.update(done, total, what)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@gates_app.command()
def train(
    base: Base, output: Output, data: Data = None, valid: Valid = None, target: Target = None, layers: Layers = None,
    n_gates: NGates = None, adapter_size: AdapterSize = None, kv: Kv = None, span: Span = None, scope: Scope = None,
    rank: Rank = None, always_run_tokens: AlwaysRun = None, harvest_tokens: Harvest = None, epochs: Epochs = None,
    tune_tokens: Tune = None, batch_tokens: Batch = None, lr: Lr = None, gate_lr: GateLr = None, seed: Seed = None,
    precision: Precision = None, vocab_sample: VocabSample = None, threads: Threads = None, device: Device = None,
    init: Init = None, valid_rows: ValidRows = None, balance: Balance = None,
    state: State = None, resume: Resume = False, json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train gates and adapters for BASE and write them as a pack.

    The run keeps its state in a folder beside the pack: stop it with Ctrl-C, go on with --resume.
    """
    out.configure(json=json, quiet=quiet)
    _need_torch()
    from ..gates.training.train import TRAINED_ON
    from ..gates.training.train import train as run

    given: dict[str, Any] = {
        "data": tuple(data) if data else None, "valid": tuple(valid) if valid else None, "target": parse_share(target),
        "layers": parse_layers(layers), "n_gates": n_gates, "adapter_size": adapter_size, "kv": kv, "span": span,
        "scope": scope, "rank": rank, "always_run_tokens": always_run_tokens, "harvest_tokens": harvest_tokens,
        "epochs": epochs, "tune_tokens": tune_tokens, "batch_tokens": batch_tokens, "lr": lr, "gate_lr": gate_lr,
        "seed": seed, "threads": threads, "device": device, "init": str(init) if init else None,
        "valid_rows": valid_rows, "balance": balance, "precision": precision, "vocab_sample": vocab_sample,
    }  # fmt: skip
    options = Options(**{name: value for name, value in given.items() if value is not None})
    try:
        with _told("training", None, "steps") as progress:
            report = run(base, output, options, state=state, resume=resume, progress=progress, note=out.talk)
    except KeyboardInterrupt:
        raise Interrupted("stopped", hint=_GOES_ON) from None
    except SystemExit:  # told to end
        out.talk(f"stopped; {_GOES_ON}")
        raise
    if json:
        out.json({"output": str(output), **report})
        return
    lowest = min(one["executed_fraction"] for one in report["calibration"])
    if options.target < lowest - 0.005:
        out.talk(f"the gates leave {lowest:.1%} of the layers running at the least, more than --target asks for")
    if not valid and TRAINED_ON in report["held_out"]:
        out.warn("without --valid the pack was calibrated on what it was trained on; other text may run more or less")
    rows: list[tuple[str, Any]] = [("pack", output), ("gates", ", ".join(map(str, report["gates"])))]
    for name, score in report["held_out"].items():
        ppl = f"perplexity {score['ppl']:.3f}, full depth {score['ppl_full']:.3f} ({score['ppl_ratio'] - 1:+.1%})"
        rows.append((name, f"{score['executed_fraction']:.1%} of the layers, {ppl}"))
    out.fields([*rows, ("report", f"{output}.json")])


def _need_torch() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise UsageError("training needs PyTorch, which is not installed", hint="pip install 'liquid-depth[train]'")


@gates_app.command()
def apply(base: BaseFile, pack: PackFile, output: Output, json: Json = False, quiet: Quiet = False) -> None:
    """Write the liquid model of a base and its gate pack."""
    out.configure(json=json, quiet=quiet)
    from ..gates.apply import apply_pack

    with _told("applying", None, "bytes") as progress:
        result = apply_pack(base, pack, output, progress)
    if json:
        out.json(result)
        return
    if fallbacks := result["fallbacks"]:
        kinds = " or ".join(sorted(set(fallbacks.values())))
        out.talk(f"{len(fallbacks)} adapter tensors fell back to {kinds}: the type beside them does not fit")
    out.data(str(output))


@gates_app.command()
def show(file: AnyFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show the gates of a pack or of a liquid model, layer by layer."""
    out.configure(json=json, quiet=quiet)
    from ..gates.show import describe_gates

    info = describe_gates(file)
    if json:
        out.json(info.as_json())
        return
    depth = info.depth
    pairs: list[tuple[str, Any]] = [
        ("file", info.path), ("type", "gate pack" if info.is_pack else "model with gates"), ("name", info.name or "-"),
        ("gates", f"{len(info.gates)} {depth.gate_kind}, {info.n_layer} layers"), ("threshold", f"{depth.threshold:g}"),
        ("kv policy", depth.kv_policy), ("always run", f"the first {depth.always_run_tokens} positions"),
        ("min layers", depth.min_layers),
    ]  # fmt: skip
    if info.n_updated:
        pairs.append(("updates", f"{info.n_updated} matrices of the base, rank {info.rank}, merged by `gates apply`"))
    if info.base:
        pairs.append(("base", f"{info.base['architecture']}, norms sha256 {info.base['norms_sha256'][:16]}..."))
    out.fields(pairs)
    _print_tables(info)


def _print_tables(info: Any) -> None:
    rows = [
        (g.layer, g.span, g.scope, "exit" if g.is_exit else g.kind, "-" if g.bias is None else f"{g.bias:+.3f}",
         f"{g.adapter_size} {g.adapter_type}" if g.adapter_size else "-")
        for g in info.gates
    ]  # fmt: skip
    out.data("")
    out.table((">layer", ">span", "scope", "kind", ">bias", "adapter"), rows)
    pairs = zip(info.depth.calibration_threshold, info.depth.calibration_executed_fraction, strict=True)
    if info.depth.calibration_threshold:
        out.data("")
        out.table((">threshold", ">layers run"), [(f"{tau:.3f}", f"{share:.1%}") for tau, share in pairs])


gates_app.command()(report)
