"""`liquid compare`: files of a model side by side, or the types that it could be quantized to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiskSpaceError, UsageError
from ..ui.console import out
from .locate import locate
from .options import BaseRef, Depth, FileOpt, Json, Offline, Quiet, Threads, WindowSize, complete_refs, option
from .perplexity import Chunks, read_text
from .quantize import Imatrix, Requantize

if TYPE_CHECKING:
    from ..quant import Plan

Models = Annotated[list[str], typer.Argument(metavar="REF [REF]...", show_default=False, autocompletion=complete_refs)]
Types = Annotated[
    str | None,
    option("--types", metavar="TYPE,...", help="Also these types of REF: each is made, measured and deleted."),
]
NPrompt = Annotated[int, option("-p", "--n-prompt", metavar="N", min=0, help="Prompt tokens to time; 0: none.")]
NGen = Annotated[int, option("-n", "--n-gen", metavar="N", min=0, help="Tokens to decode and time; 0: none.")]
NParallel = Annotated[
    str, option("-npl", metavar="N,...", help="Decode so many sequences at once too, for example 4,8.")
]
Repetitions = Annotated[int, option("-r", "--repetitions", metavar="N", min=1, help="Samples of each speed.")]
NAnswer = Annotated[
    int, option("--answers", metavar="N", min=0, help="Compare answers of N tokens to sixty questions; 0: none.")
]
Prompts = Annotated[
    Path | None, option("--prompts", metavar="FILE", help="--answers: these questions, one a line, KIND<tab> first.")
]
Plot = Annotated[Path | None, option("--plot", metavar="FILE.png", help="Draw the figures too; needs matplotlib.")]


def compare(
    models: Models,
    types: Types = None,
    imatrix: Imatrix = None,
    allow_requantize: Requantize = False,
    file: FileOpt = None,
    base: BaseRef = None,
    n_ctx: WindowSize = 512,
    n_chunks: Chunks = -1,
    n_prompt: NPrompt = 512,
    n_gen: NGen = 128,
    n_parallel: NParallel = "",
    repetitions: Repetitions = 3,
    answers: NAnswer = 0,
    prompts: Prompts = None,
    plot: Plot = None,
    n_threads: Threads = None,
    depth: Depth = "auto",
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure models side by side: size, perplexity, divergence, answers, speed and memory, as a Markdown table.

    Predictions are compared with those of --base, at full depth; with several models or --types and no --base, with
    the first. The text is FILE, or a bundled one. -p 0 -n 0 leaves speed out.
    """
    from ..runtime.bench import BUNDLED_TEXT
    from ..runtime.compare import Comparison
    from ..runtime.compare import compare as measure_all
    from ..runtime.compare_report import as_markdown
    from ..runtime.depth import DepthPolicy
    from .compare_plot import write_plot
    from .plotting import check_plot

    out.configure(json=json, quiet=quiet)
    if "," in depth:
        raise UsageError("compare takes one depth", hint="liquid perplexity --depth takes a list")
    if plot:
        check_plot(plot, file, imatrix)
    policy, text = DepthPolicy.parse(depth), read_text(file or BUNDLED_TEXT, "compare")
    together = _numbers(n_parallel)
    asked = _asked(answers, prompts)
    paths = [locate(name, None, offline=offline, depths=[policy]) for name in models]
    plans = _plans(paths, types, imatrix, allow_requantize)
    against = locate(base, offline=offline) if base else paths[0] if len(paths) + len(plans) > 1 else None
    settings = {"n_threads": n_threads}
    said = _answers(against, asked, answers, settings)
    wanted = Comparison(
        text, policy, against, n_ctx, n_chunks, n_prompt, n_gen, repetitions, together, said, settings
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="liquid-compare-") as folder:
        _check_room(Path(folder), plans)
        measured = measure_all(_made(paths, plans, Path(folder)), wanted, out.talk)
        rows = [{**row, "type": type_name(row["file_type"])} for row in measured]
    if json:
        out.json({"base": str(against) if against else None, "n_ctx": n_ctx, "models": rows})
    else:
        out.data(as_markdown(rows))
    if plot:
        write_plot(plot, rows, f"{against.name if against else rows[0]['name']}, contexts of {n_ctx} tokens")
        out.talk(f"drawn in {plot}")


def _numbers(text: str) -> tuple[int, ...]:
    from ..runtime.bench import parse_numbers
    from ..runtime.windows import MOST_SEQUENCES

    numbers = tuple(dict.fromkeys(parse_numbers(text, "-npl"))) if text else ()
    if numbers and (min(numbers) < 1 or max(numbers) > MOST_SEQUENCES):
        raise UsageError(f"-npl takes numbers of sequences from 1 to {MOST_SEQUENCES}", hint="for example -npl 4,8")
    return tuple(n for n in numbers if n > 1)


def _asked(n_tokens: int, prompts: Path | None) -> list[Any]:
    from ..runtime.agreement import BUNDLED_PROMPTS, read_prompts

    if prompts and not n_tokens:
        raise UsageError("--prompts are the questions of --answers", hint="add --answers 48")
    return read_prompts(read_text(prompts or BUNDLED_PROMPTS, "compare")) if n_tokens else []


def _answers(base: Path | None, asked: list[Any], n_tokens: int, settings: dict[str, Any]) -> tuple[Any, ...]:
    from ..runtime.agreement import answers_of

    if not asked:
        return ()
    if base is None:
        raise UsageError("answers are compared with a base's", hint="name a second model, --types or --base REF")
    out.talk(f"{base.name}: answering {len(asked)} questions")
    return tuple(answers_of(base, asked, n_tokens, **settings))


def _plans(paths: list[Path], types: str | None, imatrix: Path | None, requantize: bool) -> list[Plan]:
    """What will be made: all of it is known to be possible before the first is measured."""
    from ..quant import check_importance, plan

    if types is None:
        if imatrix:
            raise UsageError("--imatrix is for the files that --types makes")
        return []
    if len(paths) > 1:
        raise UsageError("--types takes one REF, which is quantized", hint=f"liquid compare {paths[0]} --types {types}")
    names = dict.fromkeys(name.strip() for name in types.split(",") if name.strip())
    if not names:
        raise UsageError("--types names no type", hint="for example --types Q8_0,Q4_K_M")
    plans = [plan(paths[0], name, imatrix=imatrix, allow_requantize=requantize) for name in names]
    for each in plans:
        check_importance(each)
    return plans


def _check_room(folder: Path, plans: list[Plan]) -> None:
    """For the largest: there is one at a time."""
    from ..files import check_space

    try:
        check_space(folder, max((plan.size_bytes for plan in plans), default=0))
    except DiskSpaceError as error:
        hint = f"TMPDIR=FOLDER liquid compare ... makes them on another disk than that of {folder.parent}"
        raise DiskSpaceError(error.message, hint=hint) from error


def _made(paths: list[Path], plans: list[Plan], folder: Path) -> Iterator[Path]:
    """The files, and one after the other those of the plans; each is gone when the next is asked for."""
    from ..quant import run

    yield from paths
    for plan in plans:
        path = folder / f"{paths[0].stem}-{plan.type.name}.gguf"
        with out.progress(f"quantizing to {plan.type.name}", plan.source_bytes) as bar:
            run(plan, path, progress=bar.update)
        yield path
        path.unlink()


def type_name(number: Any) -> str | None:
    """As `liquid quantize` calls it."""
    from ..quant import find_file_type

    found = find_file_type(str(number)) if number is not None else None
    return found.name if found else None
