#!/usr/bin/env python3
"""Ask a model something and see, token by token, which layers ran.

    python examples/chat_with_depth_trace.py "Why is the sky blue?"
    python examples/chat_with_depth_trace.py --model my.gguf --depth tau=0.6 --max-tokens 40 "Name three rivers."

Without --model it is the default model with its gates, fetched on first use. One row per token: the piece of text, how
many layers ran, and a mark per layer (# ran, . skipped). A model without gates runs all of them.
"""

from __future__ import annotations

import argparse
import sys

from liquidcli.errors import LiquidError
from liquidcli.hub.resolve import resolve_model
from liquidcli.runtime.chat import Conversation, ReplySettings
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.sampling import SamplingParams
from liquidcli.ui.console import out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--model", default=None, help="a file or a reference (default: the default model)")
    parser.add_argument("--depth", default="auto", help="auto, full, NN%% or tau=0.NN")
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    try:
        chat(options)
    except LiquidError as error:
        out.error(error)
        return error.exit_code
    return 0


def chat(options: argparse.Namespace) -> None:
    model = resolve_model(options.model)
    with Engine.load(model.path, n_ctx=1024) as engine:
        engine.set_depth(DepthPolicy.parse(options.depth))
        settings = ReplySettings(SamplingParams(temp=0.0), max_tokens=options.max_tokens)
        conversation = Conversation(engine, settings)
        for event in conversation.ask(options.question):
            if event.token is not None and event.layers is not None:
                marks = "".join("#" if ran else "." for ran in event.layers)
                out.data(f"{event.text!r:16} {event.layers_run:3} of {event.layers_total}  {marks}")
            if event.summary:
                used = event.summary.depth
                out.data(f"\n{conversation.last.text.strip()}\n")
                out.data(f"{used.layers_run_mean:.2f} of {used.layers_total} layers per token, prompt included")
        conversation.close()


if __name__ == "__main__":
    sys.exit(main())
