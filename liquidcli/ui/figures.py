"""What an answer took, in a few quiet lines.

Knows summaries and depth settings. Does not know when they are wanted.
"""

from __future__ import annotations

from ..runtime.chat import Conversation, Reply
from ..runtime.depth import DepthStats
from ..runtime.engine import Engine
from ..runtime.events import Summary, Timings
from .console import one_line


def answer_line(summary: Summary) -> str:
    """One line after an answer."""
    t = summary.timings
    layers = f"{summary.depth.layers_run_mean:.1f}/{summary.depth.layers_total} layers, depth {summary.policy}"
    parts = [f"{t.predicted_n} tokens{_rate(t.predicted_n, t.predicted_ms)}", layers]
    if t.prompt_n:
        parts.insert(0, f"prompt {t.prompt_n}{_rate(t.prompt_n, t.prompt_ms)}")
    return f"[{', '.join(parts)}]"


def reading_text(engine: Engine) -> str:
    """While a prompt is read; a share only where there is more than one step of it."""
    return f"reading ... {engine.share_read:.0%}" if 0 < engine.share_read < 1 else "reading ..."


def answer_status(conversation: Conversation) -> str:
    """What stands below the prompt: depth, the last answer's layers and speed, how full the context is."""
    engine, reply = conversation.engine, conversation.last
    summary = reply.summary
    used, n_ctx = conversation.n_used(), engine.info.n_ctx
    parts = [f"depth {engine.policy}"]
    if summary and summary.completion_tokens and summary.policy == engine.policy:
        t = summary.timings
        rate = f"{t.predicted_n / t.predicted_ms * 1000:.1f}" if t.predicted_ms > 0 else "-"
        parts += [f"{answer_layers(reply):.1f} of {summary.depth.layers_total} layers", f"{rate} tokens/s"]
    return " | ".join([*parts, f"context {used} of {n_ctx} ({used / n_ctx:.0%})"])


def answer_layers(reply: Reply) -> float:
    """Layers per token of the answer alone, as maps of it show them."""
    return sum(int(layers.sum()) for layers in reply.layers) / max(len(reply.layers), 1)


def answer_lines(summary: Summary) -> list[str]:
    """The same, spread out."""
    t = summary.timings
    lines = [
        f"prompt   {_prompt(t)} tokens in {t.prompt_ms / 1000:.2f} s{_rate(t.prompt_n, t.prompt_ms)}",
        f"answer   {t.predicted_n} tokens in {t.predicted_ms / 1000:.2f} s{_rate(t.predicted_n, t.predicted_ms)}",
        f"depth    {layers_text(summary.depth)}, depth {summary.policy}, prompt and answer",
        f"ended    {_REASONS[summary.finish_reason]}",
        f"seed     {summary.seed}",
    ]
    if summary.depth.n_expert:
        experts = summary.depth.as_json(summary.policy).get("experts", {})
        lines.insert(3, f"experts  {experts.get('used_mean', 0):g} of {experts.get('per_layer', 0)} per layer")
    return lines


def layers_text(stats: DepthStats) -> str:
    return f"{stats.layers_run_mean:.1f} of {stats.layers_total} layers per token ({stats.executed_fraction:.0%})"


def engine_line(engine: Engine) -> str:
    """What was loaded: name, layers, gates, depth, context."""
    info = engine.info
    gates = f"{len(info.gates)} gates" if info.gates else "no gates"
    context = f"context {info.n_ctx}"
    if info.n_ctx < info.n_ctx_train:
        context += f" of {info.n_ctx_train} (-c N for more)"
    return f"{one_line(info.name) or info.path.name}\n{info.n_layer} layers, {gates}, depth {engine.policy}, {context}"


def engine_lines(engine: Engine) -> list[str]:
    info, memory = engine.info, engine.info.memory
    rows = [
        ("file", info.path),
        ("model", f"{one_line(info.name)} ({info.architecture}, {info.n_params / 1e6:.1f}M parameters)"),
        ("layers", f"{info.n_layer}, {len(info.gates)} of them begin a gated span" if info.gates else info.n_layer),
        ("depth", f"{engine.policy}" + (f", own threshold tau={info.threshold:g}" if info.gates else "")),
        ("context", f"{info.n_ctx} tokens, {len(engine.held())} in use, {info.n_ctx_train} trained"),
        ("memory", f"weights {memory.weights_bytes / 1e6:.0f} MB, KV cache {memory.kv_bytes / 1e6:.0f} MB"),
        ("threads", f"{info.n_threads}, {info.n_threads_batch} for prompts"),
    ]
    return [f"{name:<8} {value}" for name, value in rows]


_REASONS = {
    "stop": "the model ended it", "length": "as many tokens as asked for", "context": "the context is full",
    "interrupted": "Ctrl-C",
}  # fmt: skip


def _prompt(t: Timings) -> str:
    return f"{t.prompt_n}" + (f" (and {t.cache_n} kept)" if t.cache_n else "")


def _rate(n: int, ms: float) -> str:
    return f" ({n / ms * 1000:.1f}/s)" if n and ms > 0 else ""
