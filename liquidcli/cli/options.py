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


def option(*names: str, help: str, **more: Any) -> Any:
    """An option for the second place of `Annotated[kind, option(...)]`; its default is the verb's to tell."""
    return typer.Option(*names, help=help, show_default=False, **more)


# what every verb has
Json = Annotated[bool, option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, option("-q", "--quiet", help="Only results, no talk.")]
DryRun = Annotated[bool, option("--dry-run", help="Print what would be done, and do nothing.")]
Yes = Annotated[bool, option("-y", "--yes", help="Do not ask.")]
Offline = Annotated[bool, option("--offline", help="Use what is on this machine, never the network.")]
Verbose = Annotated[bool, option("-v", "--verbose", help="Tell more.")]

# which model
Ref = Annotated[str | None, typer.Argument(metavar="[REF]", show_default=False, autocompletion=complete_refs)]
Refs = Annotated[list[str] | None, typer.Argument(metavar="[REF]...", show_default=False, autocompletion=complete_refs)]
ModelOpt = Annotated[
    str | None,
    option(
        "-m",
        "--model",
        "-hf",
        "--hf-repo",
        "-mu",
        "--model-url",
        metavar="REF",
        autocompletion=complete_refs,
        help="Model: a file, an alias, owner/name[:TAG] or an address. Default: the default model.",
    ),
]
BaseRef = Annotated[
    str | None, option("--base", metavar="REF", autocompletion=complete_refs, help="Compare with this model.")
]
Gates = Annotated[str | None, option("--gates", metavar="PACK", help="Apply this gate pack to the model first.")]
Revision = Annotated[str | None, option("--revision", metavar="REV", help="Branch, tag or commit of a hub repository.")]

# how deep
Depth = Annotated[
    str,
    option(
        "--depth",
        metavar="auto|full|NN%|tau=0.NN",
        help="Layers per token: the model's own threshold (auto), all of them (full), a share, or a gate threshold.",
    ),
]

# how it runs
CtxSize = Annotated[
    int, option("-c", "--ctx-size", metavar="N", min=0, help="Context in tokens; 0: the model's, at most 4096.")
]
WindowSize = Annotated[int, option("-c", "--ctx-size", metavar="N", min=0, help="Tokens of one window. Default: 512.")]
BatchSize = Annotated[
    int, option("-b", "--batch-size", metavar="N", min=1, help="Tokens handed to the library at once.")
]
UBatchSize = Annotated[int, option("-ub", "--ubatch-size", metavar="N", min=1, help="Tokens computed at once.")]
Threads = Annotated[int | None, option("-t", "--threads", metavar="N", min=1, help="Threads for generation.")]
ThreadsBatch = Annotated[int | None, option("-tb", "--threads-batch", metavar="N", min=1, help="Threads for prompts.")]
GpuLayers = Annotated[
    str, option("-ngl", "--gpu-layers", "--n-gpu-layers", metavar="N|auto|all", help="Layers kept on the GPU.")
]
TypeK = Annotated[
    str, option("-ctk", "--cache-type-k", metavar="TYPE", help="Type of the K cache: f32, f16, bf16, q8_0 ...")
]
TypeV = Annotated[str, option("-ctv", "--cache-type-v", metavar="TYPE", help="Type of the V cache.")]
FlashAttn = Annotated[str, option("-fa", "--flash-attn", metavar="on|off|auto", help="Flash attention.")]

# what is asked and how it is answered
Predict = Annotated[
    int, option("-n", "--predict", "--n-predict", metavar="N", min=-1, help="Tokens to generate; -1: no limit.")
]
PromptOpt = Annotated[str | None, option("-p", "--prompt", metavar="TEXT", help="The prompt.")]
FileOpt = Annotated[Path | None, option("-f", "--file", metavar="FILE", help="Read the text from this file.")]
SystemPrompt = Annotated[
    str | None, option("-sys", "--system-prompt", "--system", metavar="TEXT", help="The system prompt.")
]
SystemPromptFile = Annotated[
    Path | None, option("-sysf", "--system-prompt-file", metavar="FILE", help="The system prompt, from a file.")
]
Seed = Annotated[int, option("-s", "--seed", metavar="N", help="Seed of the sampler; -1: another one each time.")]
Temp = Annotated[
    float | None, option("--temp", metavar="X", min=0.0, help="Temperature; 0: always the likeliest token.")
]
TopK = Annotated[int | None, option("--top-k", metavar="N", help="Sample from the N likeliest tokens; 0: off.")]
TopP = Annotated[
    float | None, option("--top-p", metavar="X", help="Sample from the likeliest tokens that sum to X; 1: off.")
]
MinP = Annotated[float | None, option("--min-p", metavar="X", help="Drop tokens below X times the likeliest; 0: off.")]
RepeatPenalty = Annotated[float | None, option("--repeat-penalty", metavar="X", help="Penalty for repetition; 1: off.")]
RepeatLastN = Annotated[
    int | None, option("--repeat-last-n", metavar="N", help="Tokens that penalty looks back; 0: off.")
]
