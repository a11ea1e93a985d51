"""The options of a conversation, said once for `run` and `chat`.

`_declared` is their list, by the library's names and in the order of --help; `takes_conversation_options` puts it where
a verb has `**options`. Knows option names and help lines; `answering` knows what becomes of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from . import options as o
from .options import option

PresencePenalty = Annotated[
    float | None, option("--presence-penalty", metavar="X", help="Penalty for tokens used; 0: off.")
]
FrequencyPenalty = Annotated[
    float | None, option("--frequency-penalty", metavar="X", help="The same, by how often; 0: off.")
]
LogitBias = Annotated[
    list[str] | None, option("-l", "--logit-bias", metavar="ID+X", help="Make a token likelier or rarer.")
]
ReversePrompt = Annotated[
    list[str] | None, option("-r", "--reverse-prompt", metavar="TEXT", help="Stop before this text.")
]
IgnoreEos = Annotated[bool, option("--ignore-eos", help="Go on when the model wants to end.")]
ChatTemplate = Annotated[str | None, option("--chat-template", metavar="NAME|JINJA", help="Use this chat template.")]
ChatTemplateFile = Annotated[Path | None, option("--chat-template-file", metavar="FILE", help="It, from a file.")]
ChatTemplateKwargs = Annotated[
    str | None,
    option("--chat-template-kwargs", metavar="JSON", help='What the template is told: {"enable_thinking": false}.'),
]
ConversationMode = Annotated[
    bool | None,
    option(
        "-cnv/-no-cnv",
        "--conversation/--no-conversation",
        help="Chat (the default where the model has a template), or go on with the text.",
    ),
]
JsonSchema = Annotated[
    str | None, option("-j", "--json-schema", metavar="JSON", help="Answer in JSON of this schema; {} is any object.")
]
JsonSchemaFile = Annotated[Path | None, option("-jf", "--json-schema-file", metavar="FILE", help="It, from a file.")]
Grammar = Annotated[str | None, option("--grammar", metavar="GBNF", help="Answer in what this grammar allows.")]
GrammarFile = Annotated[Path | None, option("--grammar-file", metavar="FILE", help="It, from a file.")]
DepthMap = Annotated[
    Path | None,
    option("--depth-map", metavar="FILE", help="Draw the layers of each word of the (last) answer: .html or .png."),
]
Stats = Annotated[bool, option("--verbose", help="Print what an answer took, after it.")]
Logs = Annotated[bool, option("-v", "--log-verbose", help="Show llama.cpp's log.")]


def _declared(
    *,
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
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    logit_bias: LogitBias = None,
    reverse_prompt: ReversePrompt = None,
    ignore_eos: IgnoreEos = False,
    conversation: ConversationMode = None,
    chat_template: ChatTemplate = None,
    chat_template_file: ChatTemplateFile = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    json_schema: JsonSchema = None,
    json_schema_file: JsonSchemaFile = None,
    grammar: Grammar = None,
    grammar_file: GrammarFile = None,
    n_threads: o.Threads = None,
    n_threads_batch: o.ThreadsBatch = None,
    n_batch: o.BatchSize = 2048,
    n_ubatch: o.UBatchSize = 512,
    n_gpu_layers: o.GpuLayers = "auto",
    flash_attn: o.FlashAttn = "auto",
    type_k: o.TypeK = "f16",
    type_v: o.TypeV = "f16",
    offline: o.Offline = False,
    depth_map: DepthMap = None,
    verbose: Stats = False,
    logs: Logs = False,
    quiet: o.Quiet = False,
) -> None: ...


def takes_conversation_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the declared options between its arguments and its own options."""
    own = list(inspect.signature(verb, eval_str=True).parameters.values())
    first = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    last = [p for p in own if p.kind is p.KEYWORD_ONLY]
    shared = inspect.signature(_declared, eval_str=True).parameters.values()
    signature = inspect.Signature([*first, *shared, *last])
    vars(verb)["__signature__"] = signature
    verb.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return verb


def default(name: str) -> Any:
    """What an option is when nobody gives it."""
    return inspect.signature(_declared).parameters[name].default
