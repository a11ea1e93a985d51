"""`liquid compare`: files of a model side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import out
from .locate import locate
from .options import BaseRef, CtxSize, Depth, FileOpt, Json, Offline, Quiet, Threads, complete_refs, option
from .perplexity import Chunks, read_text

Models = Annotated[list[str], typer.Argument(metavar="REF [REF]...", show_default=False, autocompletion=complete_refs)]
NPrompt = Annotated[int, option("-p", "--n-prompt", metavar="N", min=0, help="Prompt tokens to time; 0: none.")]
NGen = Annotated[int, option("-n", "--n-gen", metavar="N", min=0, help="Tokens to decode and time; 0: none.")]
Repetitions = Annotated[int, option("-r", "--repetitions", metavar="N", min=1, help="Samples of each speed.")]


def compare(
    models: Models,
    file: FileOpt = None,
    base: BaseRef = None,
    n_ctx: CtxSize = 512,
    n_chunks: Chunks = -1,
    n_prompt: NPrompt = 512,
    n_gen: NGen = 128,
    repetitions: Repetitions = 3,
    n_threads: Threads = None,
    depth: Depth = "auto",
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure models side by side: size, perplexity, divergence, speed and memory, as a Markdown table.

    Predictions are compared with those of --base, at full depth; with several models and no --base, with the first.
    The text is FILE, or a bundled one. -p 0 -n 0 leaves speed out.
    """
    from ..runtime.bench import BUNDLED_TEXT
    from ..runtime.compare import Comparison, as_markdown
    from ..runtime.compare import compare as measure_all
    from ..runtime.depth import DepthPolicy

    out.configure(json=json, quiet=quiet)
    if "," in depth:
        raise UsageError("compare takes one depth", hint="liquid perplexity --depth takes a list")
    policy, text = DepthPolicy.parse(depth), read_text(file or BUNDLED_TEXT, "compare")
    paths = [locate(name, None, offline=offline) for name in models]
    against = locate(base, offline=offline) if base else paths[0] if len(paths) > 1 else None
    settings = {"n_threads": n_threads}
    wanted = Comparison(text, policy, against, n_ctx, n_chunks, n_prompt, n_gen, repetitions, settings)
    rows = [{**row, "type": type_name(row["file_type"])} for row in measure_all(paths, wanted, out.talk)]
    if json:
        out.json({"base": str(against) if against else None, "n_ctx": n_ctx, "models": rows})
    else:
        out.data(as_markdown(rows))


def type_name(number: Any) -> str | None:
    """As `liquid quantize` calls it."""
    from ..quant import find_file_type

    found = find_file_type(str(number)) if number is not None else None
    return found.name if found else None
