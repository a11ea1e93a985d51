"""`liquid chat`: talk with a model at a terminal, or through a pipe, line by line."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import is_terminal, out
from . import answering as a
from . import options as o

if TYPE_CHECKING:
    from ..ui.lineedit import Reader

SingleTurn = Annotated[bool, o.option("-st", "--single-turn", help="End after one answer.")]


def chat(
    ref: o.Ref = None,
    model: o.ModelOpt = None,
    prompt: o.PromptOpt = None,
    file: o.FileOpt = None,
    system_prompt: o.SystemPrompt = None,
    system_prompt_file: o.SystemPromptFile = None,
    depth: o.Depth = "auto",
    gates: o.Gates = None,
    max_tokens: o.Predict = -1,
    n_ctx: o.CtxSize = 0,
    temp: o.Temp = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    seed: o.Seed = -1,
    repeat_penalty: o.RepeatPenalty = None,
    repeat_last_n: o.RepeatLastN = None,
    presence_penalty: a.PresencePenalty = None,
    frequency_penalty: a.FrequencyPenalty = None,
    logit_bias: a.LogitBias = None,
    reverse_prompt: a.ReversePrompt = None,
    ignore_eos: a.IgnoreEos = False,
    conversation: a.ConversationMode = None,
    chat_template: a.ChatTemplate = None,
    chat_template_file: a.ChatTemplateFile = None,
    n_threads: o.Threads = None,
    n_threads_batch: o.ThreadsBatch = None,
    n_batch: o.BatchSize = 2048,
    n_ubatch: o.UBatchSize = 512,
    n_gpu_layers: o.GpuLayers = "auto",
    flash_attn: o.FlashAttn = "auto",
    type_k: o.TypeK = "f16",
    type_v: o.TypeV = "f16",
    single_turn: SingleTurn = False,
    offline: o.Offline = False,
    verbose: a.Stats = False,
    logs: a.Logs = False,
    quiet: o.Quiet = False,
) -> None:
    """Chat with a model; without a REF, with the default model. /help inside lists what there is.

    Without a terminal, every line of standard input is a turn, and the exit code is that of the first error.
    """
    options = dict(locals())
    out.configure(quiet=quiet)
    if ref and model:
        raise UsageError(f"both {ref} and -m {model} name a model", hint="give one of them")
    first = [prompt, a.read_text(file) if file else None]
    talk(options, model or ref, first="\n\n".join(filter(None, first)), single_turn=single_turn)


def talk(options: Mapping[str, Any], ref: str | None, *, first: str = "", single_turn: bool = False) -> None:
    """Load the model and go on until somebody leaves."""
    from ..ui.repl import Repl

    reader = _reader()
    with reader.session(), a.conversation(options, ref) as conversation:
        repl = Repl(conversation, reader, verbose=options["verbose"])
        repl.run(first, single_turn=single_turn)
    if repl.failure and not reader.interactive:
        raise typer.Exit(repl.failure.exit_code)


def _reader() -> Reader:
    from ..hub.home import folder
    from ..ui import lineedit
    from ..ui.repl_commands import words

    if sys.stdin.isatty() and is_terminal(sys.stdout):
        return lineedit.TerminalReader(folder(".") / "history", words())
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return lineedit.PipeReader()
