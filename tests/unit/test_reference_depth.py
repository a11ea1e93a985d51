"""The reference against the architecture's formulas, one token at a time, from the checkpoint's tensors."""

from __future__ import annotations

import pytest
import torch

from liquidcli.errors import LiquidError
from liquidcli.reference import LiquidConfig, LiquidForCausalLM
from liquidcli.reference.attention import Context
from tests.by_hand import ByHand
from tests.cached import CachedReference
from tests.tiny import make_config, make_model, random_tokens
from tests.tiny_families import (
    ADAPTED,
    BOTTLENECK,
    DROPS,
    EXIT,
    EXIT_AMONG_HALVES,
    EXITS,
    LINEAR,
    MIXED,
    N_LAYER,
    SCALED,
    SCOPES,
    SPAN2,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


CASES = {
    "linear": {**LINEAR, "gate_bias": True},
    "bottleneck": {**BOTTLENECK, "gate_bias": True},
    "folded": {**BOTTLENECK, "gate_folded": True},
    "adapter": ADAPTED,
    "scaled": {**ADAPTED, **SCALED},
    "ffn-scaled": {**ADAPTED, "ffn_scaled_by_gate": True},
    "span2": SPAN2,
    "span3-adapter-scaled": {**LINEAR, "gate_span": [0, 3, 0, 0, 2, 0], "adapter_size": 32, **SCALED},
    "min-layers": {**SPAN2, "gate_span": [1, 2, 0, 1, 1, 1], "min_layers": 4},
    "always-run": {**ADAPTED, "always_run_tokens": 3},
    "threshold": {**LINEAR, "gate_bias": True, "threshold": 0.8},
}


OTHER_KINDS = {**SCOPES, **EXITS, **DROPS}
DENSE = {name: keys for name, keys in OTHER_KINDS.items() if not {"moe_layers", "no_rope_layers"} & set(keys)}


def assert_follows_the_formulas(model: LiquidForCausalLM, n_tokens: int = 14) -> None:
    tokens = random_tokens(model.config, 1, n_tokens, seed=1)
    out, hand = model(tokens), ByHand(model)
    for i, token in enumerate(tokens[0].tolist()):
        logits, ws, runs, layers_run = hand.token(token)
        assert out.trace.run[0, i].tolist() == runs
        assert float(out.trace.layers_run[0, i]) == pytest.approx(layers_run, rel=1e-12)
        torch.testing.assert_close(out.trace.w[0, i], torch.tensor(ws), equal_nan=True, **CLOSE)
        torch.testing.assert_close(out.logits[0, i], logits, **CLOSE)
    assert 0 < out.trace.run.float().mean() < 1


@pytest.mark.parametrize("depth", CASES.values(), ids=CASES)
def test_follows_the_formulas(depth: dict) -> None:
    assert_follows_the_formulas(make_model({"depth": depth}))


@pytest.mark.parametrize("family", DENSE)
def test_halves_exits_and_drop_follow_the_formulas(family: str) -> None:
    assert_follows_the_formulas(make_model(family), 24)


def test_runs_only_above_the_threshold() -> None:
    model = make_model({"depth": LINEAR})
    tokens = random_tokens(model.config, 1, 9)
    w = model(tokens).trace.w[0, 4, 0]
    assert not model(tokens, threshold=float(w)).trace.run[0, 4, 0]
    below = torch.nextafter(w, torch.zeros(()))
    assert model(tokens, threshold=float(below)).trace.run[0, 4, 0]


def test_full_is_the_model_without_gates_and_evaluates_none() -> None:
    model = make_model({"depth": {**ADAPTED, **SCALED}})
    base = LiquidForCausalLM(make_config({})).eval()
    base.load_state_dict({name: t for name, t in model.state_dict().items() if ".depth_" not in name})
    tokens = random_tokens(model.config, 2, 9)
    out = model(tokens, depth="full")
    assert torch.equal(out.logits, base(tokens).logits)
    assert out.trace.w.isnan().all() and out.trace.run.all() and out.trace.executed_fraction == 1


def test_forced_run_equals_full_and_forced_skip_leaves_the_embedding() -> None:
    model = make_model({"depth": LINEAR})
    tokens = random_tokens(model.config, 2, 9)
    table = torch.ones(9, N_LAYER, dtype=torch.bool)
    assert torch.equal(model(tokens, depth="forced", forced=table).logits, model(tokens, depth="full").logits)
    skipped = model(tokens, depth="forced", forced=~table)
    head = model.lm_head(model.model.norm(model.model.embed_tokens(tokens)))
    assert torch.equal(skipped.logits, head)
    assert skipped.trace.executed_fraction == 0


def test_forced_table_overrules_min_layers_and_always_run_tokens() -> None:
    model = make_model({"depth": {**LINEAR, "min_layers": 5, "always_run_tokens": 9}})
    tokens = random_tokens(model.config, 1, 9)
    assert model(tokens).trace.run.all()
    forced = torch.zeros(9, N_LAYER, dtype=torch.bool)
    assert not model(tokens, depth="forced", forced=forced).trace.run.any()


def test_executed_fraction_counts_layers_of_spans() -> None:
    model = make_model({"depth": SPAN2})
    tokens = random_tokens(model.config, 1, 4)
    forced = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    trace = model(tokens, depth="forced", forced=forced).trace
    assert trace.layers_run[0].tolist() == [2, 4, 4, 6]
    assert trace.executed_fraction == pytest.approx(16 / 24)


def test_experts_are_traced_where_the_layer_ran() -> None:
    model = make_model({**MIXED, "depth": LINEAR})
    trace = model(random_tokens(model.config, 2, 9)).trace
    ran = trace.run[..., list(model.config.moe_layers)]
    assert torch.equal(trace.experts >= 0, ran[..., None].expand_as(trace.experts))
    assert trace.experts.shape[-1] == model.config.num_experts_per_tok


def test_later_tokens_and_neighbours_change_nothing() -> None:
    model = make_model("span3-scaled")
    tokens = random_tokens(model.config, 3, 12)
    out = model(tokens)
    torch.testing.assert_close(model(tokens[1:2, :7]).logits, out.logits[1:2, :7], **CLOSE)


def test_straight_through_keeps_the_value_and_reaches_the_gates() -> None:
    model = make_model("span2-adapter").requires_grad_(True)
    tokens = random_tokens(model.config, 2, 12)
    out = model(tokens, gate_mode="ste")
    torch.testing.assert_close(out.logits, model(tokens).logits, **CLOSE)
    out.logits.square().mean().backward()
    assert all(model.model.layers[i].depth_gate.head.weight.grad.abs().sum() > 0 for i in model.config.gate_layers)


def test_soft_gates_become_hard_when_cold() -> None:
    model = make_model({"depth": {**LINEAR, "threshold": 0.3}})
    tokens = random_tokens(model.config, 1, 12)
    hard, cold = model(tokens), model(tokens, gate_mode="soft", temperature=1e-6)
    torch.testing.assert_close(cold.logits, hard.logits, **CLOSE)
    warm = model(tokens, gate_mode="soft", temperature=1.0)
    assert ((warm.trace.share > 0.01) & (warm.trace.share < 0.99)).float().mean() > 0.9
    torch.manual_seed(0)
    assert not torch.equal(model(tokens, gate_mode="soft", noise=1.0).logits, warm.logits)


def test_a_token_that_left_says_so_and_forced_decisions_overrule_what_would_keep_it() -> None:
    model = make_model({"depth": {**LINEAR, **EXIT_AMONG_HALVES, "min_layers": 6, "always_run_tokens": 9}})
    tokens = random_tokens(model.config, 1, 9)
    assert model(tokens).trace.run.all()
    forced = torch.ones(9, len(model.config.gates), dtype=torch.bool)
    forced[4, 3] = False  # the exit before layer 2
    trace = model(tokens, depth="forced", forced=forced).trace
    assert trace.run[0, 4].tolist() == [True] * 3 + [False] * 5
    assert trace.w[0, 4, :4].isfinite().all() and trace.w[0, 4, 4:].isnan().all()
    assert trace.layers_run[0].tolist() == [6] * 4 + [2] + [6] * 4
    early = model.model.norm(model.model.layers[1](*_through(model, tokens, 1))[0])
    head = model.lm_head(early)[0, 4]
    torch.testing.assert_close(model(tokens, depth="forced", forced=forced).logits[0, 4], head, **CLOSE)


def _through(model: LiquidForCausalLM, tokens: torch.Tensor, n_layer: int) -> tuple[torch.Tensor, Context]:
    h, context = model.model.embed_tokens(tokens), Context(model.config, torch.arange(tokens.shape[1]))
    for layer in model.model.layers[:n_layer]:
        h, _ = layer(h, context)
    return h, context


def test_half_gates_count_by_their_parameters() -> None:
    model = make_model("moe-attn-ffn-shared")
    tokens = random_tokens(model.config, 1, 3)
    forced = torch.ones(3, 12, dtype=torch.bool)
    forced[1, 3] = forced[2, 2] = False  # layer 1, a mixture: its feed-forward half, its attention half
    run = model(tokens, depth="forced", forced=forced).trace.layers_run[0].tolist()
    attention = 64 + 2 * 64 * 64 + 2 * 32 * 64 + 64 + 32 + 32 + 64 + 16 + 16  # norm, q, o, k, v, biases, q and k norms
    feed = 64 + 64 * 6 + 3 * 64 * 48 * 2 + 3 * 64 * 40  # norm, router, two experts of six, the shared one
    share = attention / (attention + feed)
    assert run == pytest.approx([6, 5 + share, 6 - share], rel=1e-12)


def test_what_was_dropped_is_seen_by_nobody() -> None:
    """Under drop a token whose last layers were skipped might as well have another word there."""
    model, kept = (make_model({"depth": {**LINEAR, "kv_policy": policy}}) for policy in ("drop", "project"))
    tokens, other = random_tokens(model.config, 1, 9), random_tokens(model.config, 1, 9)
    other[0, 3] = (other[0, 3] + 1) % 384
    forced = torch.ones(9, N_LAYER, dtype=torch.bool)
    forced[3] = False
    same, changed = (model(t, depth="forced", forced=forced).logits[0] for t in (tokens, other))
    assert torch.equal(same[4:], changed[4:]) and not torch.equal(same[3], changed[3])
    same, changed = (kept(t, depth="forced", forced=forced).logits[0] for t in (tokens, other))
    assert not torch.equal(same[4:], changed[4:])


@pytest.mark.parametrize("family", ["exit-halves", "drop-exit-around", "drop-attn-ffn", "exit-around-scaled"])
@pytest.mark.parametrize("gate_mode", ["ste", "soft"])
def test_halves_and_exits_train(family: str, gate_mode: str) -> None:
    model = make_model(family).requires_grad_(True)
    tokens = random_tokens(model.config, 2, 12)
    out = model(tokens, gate_mode=gate_mode, temperature=1e-6 if gate_mode == "soft" else 1.0)
    torch.testing.assert_close(out.logits, model(tokens).logits, **CLOSE)
    model(tokens, gate_mode=gate_mode).logits.square().mean().backward()
    for gate in model.config.gates:
        gradient = getattr(model.model.layers[gate.layer], gate.stem).head.weight.grad
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, gate


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": {**LINEAR, "gate_span": [2, 1, 0, 0, 0, 0]}}, "inside the span of the one before"),
        ({"depth": {**LINEAR, "gate_span": [0, 0, 0, 0, 0, 2]}}, "spans 2 of 6 layers"),
        ({"depth": {**LINEAR, "gate_span": [1]}}, "one entry per layer"),
        ({"depth": {"gate_kind": "linear"}}, "gate_span"),
        ({"depth": {**EXIT, "gate_span": [0, 0, 0, 2, 0, 0]}}, "all that remain were expected"),
        ({"depth": {**EXIT, "gate_span": [0, 0, 2, 3, 0, 0]}}, "inside the span of the one before"),
        ({"depth": {**EXIT, "gate_span": [1, 0, 0, 0, 0, 0]}}, "layer 3 has a scope or an exit but no gate"),
        ({"depth": {**EXIT, "gate_scope": ["attn"] * N_LAYER}}, "layer 0 has a scope"),
        ({"depth": {**LINEAR, "gate_exit": [False] * 5 + [True], "gate_scope": ["ffn"] * 6}}, "span 1 and be no exit"),
        ({"depth": {**SPAN2, "gate_scope": ["layer", "attn"] + ["layer"] * 4}}, "span 1 and be no exit"),
        ({"depth": {**LINEAR, "gate_exit": [False]}}, "gate_exit have not one value"),
        ({"qk_norm": "layer"}, "qk_norm is 'layer'"),
        ({"layer_types": ["sliding_attention"] * N_LAYER}, "without a size"),
        ({"moe_layers": [0]}, "without experts"),
    ],
)
def test_bad_configurations_are_one_sentence(keys: dict, message: str) -> None:
    with pytest.raises(LiquidError, match=message):
        make_config(keys)


def test_config_survives_its_json() -> None:
    for keys in ({"depth": {**ADAPTED, **SCALED}}, MIXED):
        config = make_config(keys)
        assert LiquidConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "family", ["llama4", "span3-scaled", "min-layers-span", "sliding", "temperature", "moe-renormalised", *OTHER_KINDS]
)
def test_one_token_at_a_time_with_a_memory_says_the_same(family: str) -> None:
    model = make_model(family)
    tokens = random_tokens(model.config, 1, 20, seed=3)
    out, cached = model(tokens), CachedReference(model)
    for i, token in enumerate(tokens[0].tolist()):
        logits, runs = cached.decode(0, token)
        assert runs == out.trace.run[0, i].tolist()
        torch.testing.assert_close(logits, out.logits[0, i], **CLOSE)
