"""Option types shared by the verbs: spelled like llama.cpp's, one-dash long flags included.

Knows names and help lines. Defaults belong to the verbs, meanings to the library, whose parameter names the verbs keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def complete_refs(incomplete: str) -> list[str]:
    """Shell completion: aliases and stored models that begin like this."""
    from ..hub.store import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


def option(kind: Any, *names: str, help: str, **more: Any) -> Any:
    """`Annotated[kind, typer.Option(...)]`, in one word, for the tables below and for a verb's own options."""
    return Annotated[kind, typer.Option(*names, help=help, show_default=False, **more)]


# what every verb has
Json = option(bool, "--json", help="Print the result as JSON on stdout.")
Quiet = option(bool, "-q", "--quiet", help="Only results, no talk.")
DryRun = option(bool, "--dry-run", help="Print what would be done, and do nothing.")
Yes = option(bool, "-y", "--yes", help="Do not ask.")
Offline = option(bool, "--offline", help="Use what is on this machine, never the network.")
Verbose = option(bool, "-v", "--verbose", help="Tell more.")

# which model
Ref = Annotated[str | None, typer.Argument(metavar="[REF]", show_default=False, autocompletion=complete_refs)]
Refs = Annotated[list[str] | None, typer.Argument(metavar="[REF]...", show_default=False, autocompletion=complete_refs)]
ModelOpt = option(
    str | None, "-m", "--model", metavar="REF", autocompletion=complete_refs,
    help="Model: a file, an alias, owner/name[:TAG] or an address. Default: the default model.",
)  # fmt: skip
BaseRef = option(str | None, "--base", metavar="REF", autocompletion=complete_refs, help="Compare with this model.")
Gates = option(str | None, "--gates", metavar="PACK", help="Apply this gate pack to the model first.")
Revision = option(str | None, "--revision", metavar="REV", help="Branch, tag or commit of a hub repository.")

# how deep
Depth = option(
    str, "--depth", metavar="auto|full|NN%|tau=0.NN",
    help="Layers per token: the model's own threshold (auto), all of them (full), a share, or a gate threshold.",
)  # fmt: skip

# how it runs
CtxSize = option(int, "-c", "--ctx-size", metavar="N", min=0, help="Context in tokens; 0: as the model was trained.")
BatchSize = option(int, "-b", "--batch-size", metavar="N", min=1, help="Tokens handed to the library at once.")
UBatchSize = option(int, "-ub", "--ubatch-size", metavar="N", min=1, help="Tokens computed at once.")
Threads = option(int | None, "-t", "--threads", metavar="N", min=1, help="Threads for generation.")
ThreadsBatch = option(int | None, "-tb", "--threads-batch", metavar="N", min=1, help="Threads for prompts.")
GpuLayers = option(str, "-ngl", "--gpu-layers", "--n-gpu-layers", metavar="N|auto|all", help="Layers kept on the GPU.")
TypeK = option(str, "-ctk", "--cache-type-k", metavar="TYPE", help="Type of the K cache: f32, f16, bf16, q8_0 ...")
TypeV = option(str, "-ctv", "--cache-type-v", metavar="TYPE", help="Type of the V cache.")
FlashAttn = option(str, "-fa", "--flash-attn", metavar="on|off|auto", help="Flash attention.")

# what is asked and how it is answered
Predict = option(int, "-n", "--predict", "--n-predict", metavar="N", min=-1, help="Tokens to generate; -1: no limit.")
PromptOpt = option(str | None, "-p", "--prompt", metavar="TEXT", help="The prompt.")
FileOpt = option(Path | None, "-f", "--file", metavar="FILE", help="Read the text from this file.")
SystemPrompt = option(str | None, "-sys", "--system-prompt", "--system", metavar="TEXT", help="The system prompt.")
SystemPromptFile = option(
    Path | None, "-sysf", "--system-prompt-file", metavar="FILE", help="The system prompt, from a file."
)
Seed = option(int, "-s", "--seed", metavar="N", help="Seed of the sampler; -1: another one each time.")
Temp = option(float | None, "--temp", metavar="X", min=0.0, help="Temperature; 0: always the likeliest token.")
TopK = option(int | None, "--top-k", metavar="N", help="Sample from the N likeliest tokens; 0: off.")
TopP = option(float | None, "--top-p", metavar="X", help="Sample from the likeliest tokens that sum to X; 1: off.")
MinP = option(float | None, "--min-p", metavar="X", help="Drop tokens below X times the likeliest; 0: off.")
RepeatPenalty = option(float | None, "--repeat-penalty", metavar="X", help="Penalty for repetition; 1: off.")
RepeatLastN = option(int | None, "--repeat-last-n", metavar="N", help="Tokens that penalty looks back; 0: off.")
