"""`liquid bench`: tokens per second of prompts and generation, at one or several depths in turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from .. import text_file
from ..errors import LiquidError, MemoryFitError, UsageError
from ..ui.console import out
from .locate import locate
from .options import Depth, FileOpt, Gates, Json, ModelOpt, Offline, Quiet, option

_LIST = "N[,N...]"
NPrompt = Annotated[str, option("-p", "--n-prompt", metavar=_LIST, help="Tokens of a prompt, timed at once.")]
NGen = Annotated[str, option("-n", "--n-gen", metavar=_LIST, help="Tokens generated, one by one.")]
PromptGen = Annotated[
    list[str] | None, option("-pg", metavar="N,N", help="A prompt and then a generation, timed together.")
]
NDepth = Annotated[str, option("-d", "--n-depth", metavar=_LIST, help="Tokens in the context before the clock starts.")]
Repetitions = Annotated[int, option("-r", "--repetitions", metavar="N", min=1, help="Samples per test.")]
Output = Annotated[str, option("-o", "--output", metavar="md|json|jsonl|csv", help="Format of the results.")]
Random = Annotated[bool, option("--random", help="Feed random tokens to models with gates too, as llama-bench does.")]
BatchSizes = Annotated[str, option("-b", "--batch-size", metavar=_LIST, help="Tokens handed to the library at once.")]
UBatchSizes = Annotated[str, option("-ub", "--ubatch-size", metavar=_LIST, help="Tokens computed at once.")]
ThreadCounts = Annotated[str | None, option("-t", "--threads", metavar=_LIST, help="Threads.")]
GpuLayerCounts = Annotated[
    str, option("-ngl", "--n-gpu-layers", "--gpu-layers", metavar="N|auto|all,...", help="Layers on the GPU.")
]
TypesK = Annotated[str, option("-ctk", "--cache-type-k", metavar="TYPE,...", help="Type of the K cache.")]
TypesV = Annotated[str, option("-ctv", "--cache-type-v", metavar="TYPE,...", help="Type of the V cache.")]
FlashAttns = Annotated[str, option("-fa", "--flash-attn", metavar="on|off|auto,...", help="Flash attention.")]


def bench(
    model: ModelOpt = None,
    n_prompt: NPrompt = "512",
    n_gen: NGen = "128",
    prompt_gen: PromptGen = None,
    n_depth: NDepth = "0",
    repetitions: Repetitions = 5,
    depth: Depth = "auto",
    file: FileOpt = None,
    random: Random = False,
    n_batch: BatchSizes = "2048",
    n_ubatch: UBatchSizes = "512",
    n_threads: ThreadCounts = None,
    n_gpu_layers: GpuLayerCounts = "auto",
    flash_attn: FlashAttns = "auto",
    type_k: TypesK = "f16",
    type_v: TypesV = "f16",
    gates: Gates = None,
    output: Output = "md",
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, as llama-bench does.

    --depth takes a comma list, whose members are run in turns. Models with gates are fed real text, a bundled one or
    -f FILE: gates run deep on random tokens. -d is context that is already filled, as in llama-bench.
    """
    from ..runtime.bench import parse_numbers, plan_tests
    from ..runtime.bench_report import FORMATS
    from ..runtime.depth import DepthPolicy

    if output not in FORMATS:
        raise UsageError(f"{output!r} is no output format", hint=f"-o {' | '.join(FORMATS)}")
    output = "json" if json else output
    out.configure(json=output == "json", quiet=quiet)
    policies = [DepthPolicy.parse(word) for word in depth.split(",")]
    tests = plan_tests(
        parse_numbers(n_prompt, "-p"), parse_numbers(n_gen, "-n"), [_pair(text) for text in prompt_gen or ()],
        parse_numbers(n_depth, "-d"),
    )  # fmt: skip
    settings = {
        "n_batch": parse_numbers(n_batch, "-b"),
        "n_ubatch": parse_numbers(n_ubatch, "-ub"),
        "n_threads": parse_numbers(n_threads, "-t") if n_threads else [None],
        "n_gpu_layers": _words(n_gpu_layers),
        "type_k": _words(type_k),
        "type_v": _words(type_v),
        "flash_attn": _words(flash_attn),
    }
    text = _text(file)
    path = locate(model, gates, offline=offline, depths=policies)
    records: list[dict[str, Any]] = []
    try:
        for chosen in itertools.product(*settings.values()):
            one = dict(zip(settings, chosen, strict=True))
            records += _run(path, one, tests, policies, repetitions, text, random)
    except LiquidError:
        if records:
            _print(records, output)  # what was measured before is worth as much
        raise
    _print(records, output)


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",")]


def _pair(text: str) -> tuple[int, int]:
    from ..runtime.bench import parse_numbers

    numbers = parse_numbers(text, "-pg")
    if len(numbers) != 2:
        raise UsageError(f"-pg takes a prompt and a generation length, {text!r} is not that", hint="-pg 512,128")
    return numbers[0], numbers[1]


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    if text := text_file.read_text(file):
        return text
    raise UsageError(f"{file} is empty", hint="-f takes a text file; without it, a bundled text is read")


def _run(
    path: Path, settings: dict[str, Any], tests: list[Any], policies: list[Any], repetitions: int, text: str | None,
    random: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    from ..runtime.bench import run_test
    from ..runtime.bench_report import record
    from ..runtime.engine import Engine
    from ..runtime.info import untrained_context

    longest = max(test.n_ctx for test in tests)
    try:
        engine = Engine.load(path, n_ctx=longest, **settings)
    except MemoryFitError as error:
        raise MemoryFitError(error.message, hint="shorter tests (-p, -n, -d) or a smaller quantization") from error
    if note := untrained_context(longest, engine.info.n_ctx_train):
        out.warn(note)
    with engine:
        for policy in policies:
            engine.set_depth(policy)
        fed, tokens = _food(engine, longest, text, random)
        for test in tests:
            with out.progress(test.label, repetitions * len(policies), unit="samples") as bar:
                done = itertools.count(1)
                results = run_test(
                    engine, test, policies, tokens, repetitions=repetitions, n_batch=settings["n_batch"],
                    on_sample=lambda _: bar.update(next(done)),  # noqa: B023 - called before the loop goes on
                )  # fmt: skip
            for result in results:
                yield record(engine, result, settings, fed)


def _food(engine: Any, n_tokens: int, text: str | None, random: bool) -> tuple[str, Any]:
    """What the model is fed, in a word and as tokens; says so where it is not llama-bench's."""
    from ..runtime.bench import BUNDLED_TEXT, random_tokens, text_tokens

    if random or (text is None and not engine.info.gates):
        bos = engine.model.bos if engine.model.add_bos else None
        return "random", random_tokens(n_tokens, engine.info.n_vocab, bos)
    if text is None:
        out.talk("gates run deep on random tokens, so this model is fed the bundled text (--random: as llama-bench)")
    return "text", text_tokens(engine, text or BUNDLED_TEXT.read_text("utf-8"), n_tokens)


def _print(records: list[dict[str, Any]], output: str) -> None:
    from ..runtime import bench_report as report

    if output == "json":
        out.json(records)
        return
    out.data({"md": report.as_markdown, "csv": report.as_csv, "jsonl": report.as_jsonl}[output](records))
    if output == "md":
        for line in report.savings(records):
            out.data(f"\n{line}")
        out.data(f"\nbuild: {records[0]['build_commit']} ({records[0]['build_number']})")
