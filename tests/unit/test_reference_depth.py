"""The reference against the architecture's formulas, one token at a time, from the checkpoint's tensors."""

from __future__ import annotations

import math

import pytest
import torch

from liquidcli.errors import LiquidError
from liquidcli.reference import LiquidConfig, LiquidForCausalLM
from tests.cached import CachedReference
from tests.tiny import make_config, make_model, random_tokens
from tests.tiny_families import ADAPTED, BOTTLENECK, LINEAR, MIXED, N_LAYER, SCALED, SPAN2

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class ByHand:
    """One sequence, token by token, with a K/V cache per layer; weights by checkpoint name."""

    def __init__(self, model: LiquidForCausalLM) -> None:
        self.config = model.config
        self.tensors = dict(model.state_dict())
        self.cache: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(self.config.num_hidden_layers)]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / math.sqrt(float((x * x).mean()) + self.config.rms_norm_eps) * self[name]

    def mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate = self[f"{name}.gate_proj.weight"] @ x
        return self[f"{name}.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * (self[f"{name}.up_proj.weight"] @ x))

    def store(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """K,V of the next position from h; returns the normed state."""
        n = self.norm(h, f"model.layers.{layer}.input_layernorm.weight")
        attn = f"model.layers.{layer}.self_attn"
        position = len(self.cache[layer])
        keys = self.rotate((self[f"{attn}.k_proj.weight"] @ n).view(-1, self.config.head_dim), position)
        self.cache[layer].append((keys, (self[f"{attn}.v_proj.weight"] @ n).view(-1, self.config.head_dim)))
        return n

    def rotate(self, heads: torch.Tensor, position: int) -> torch.Tensor:
        half = self.config.head_dim // 2
        out = heads.clone()
        for i in range(half):
            angle = position * self.config.rope_theta ** (-i / half)
            a, b = heads[:, i], heads[:, i + half]
            out[:, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def attend(self, layer: int, n: torch.Tensor) -> torch.Tensor:
        c, attn = self.config, f"model.layers.{layer}.self_attn"
        q = self.rotate((self[f"{attn}.q_proj.weight"] @ n).view(-1, c.head_dim), len(self.cache[layer]) - 1)
        out = []
        for head in range(c.num_attention_heads):
            group = head * c.num_key_value_heads // c.num_attention_heads
            scores = torch.stack([q[head] @ k[group] for k, _ in self.cache[layer]]) / math.sqrt(c.head_dim)
            weights = scores.exp() / scores.exp().sum()
            out.append(sum(p * v[group] for p, (_, v) in zip(weights, self.cache[layer], strict=True)))
        return self[f"{attn}.o_proj.weight"] @ torch.cat(out)

    def gate(self, layer: int, n: torch.Tensor) -> float:
        head = f"model.layers.{layer}.depth_gate"
        if f"{head}.enc.weight" in self.tensors:
            n = self.norm(self[f"{head}.enc.weight"] @ n, f"{head}.norm.weight").tanh()
        if f"{head}.dec.weight" in self.tensors:
            n = self[f"{head}.dec.weight"] @ n
        z = float(self[f"{head}.head.weight"] @ n) + float(self.tensors.get(f"{head}.head.bias", torch.zeros(1)))
        return 1 / (1 + math.exp(-z))

    def token(self, token: int) -> tuple[torch.Tensor, list[float], list[bool]]:
        h, depth, layer = self["model.embed_tokens.weight"][token], self.config.depth, 0
        position, ws, runs, n_run = len(self.cache[0]), [], [], 0
        while layer < self.config.num_hidden_layers:
            span = depth.gate_span[layer] or 1
            entered, run, w = h, True, 1.0
            if depth.gate_span[layer]:
                w = self.gate(layer, self.norm(h, f"model.layers.{layer}.input_layernorm.weight"))
                run = w > depth.threshold or position < depth.always_run_tokens
                run = run or n_run + self.config.num_hidden_layers - layer - span < depth.min_layers
                ws.append(w)
                runs.append(run)
            for inner in range(layer, layer + span):
                n = self.store(inner, h)
                if run:
                    h = h + self.attend(inner, n)
                    x = self.norm(h, f"model.layers.{inner}.post_attention_layernorm.weight")
                    h = h + (w if depth.ffn_scaled_by_gate else 1) * self.mlp(x, f"model.layers.{inner}.feed_forward")
            if not run and depth.adapter_size:
                x = self.norm(entered, f"model.layers.{layer}.post_attention_layernorm.weight")
                scale = 1 - w if depth.adapter_scaled_by_gate else 1
                h = h + scale * self.mlp(x, f"model.layers.{layer}.depth_adapter")
            n_run += span * run
            layer += span
        return self["lm_head.weight"] @ self.norm(h, "model.norm.weight"), ws, runs


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


@pytest.mark.parametrize("depth", CASES.values(), ids=CASES)
def test_follows_the_formulas(depth: dict) -> None:
    model = make_model({"depth": depth})
    tokens = random_tokens(model.config, 1, 14, seed=1)
    out, hand = model(tokens), ByHand(model)
    for i, token in enumerate(tokens[0].tolist()):
        logits, ws, runs = hand.token(token)
        assert out.trace.run[0, i].tolist() == runs
        torch.testing.assert_close(out.trace.w[0, i], torch.tensor(ws), **CLOSE)
        torch.testing.assert_close(out.logits[0, i], logits, **CLOSE)
    assert 0 < out.trace.run.float().mean() < 1


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


@pytest.mark.parametrize(
    "depth",
    [{"kv_policy": "drop"}, {"gate_exit": [True] * N_LAYER}, {"gate_scope": ["attn"] * N_LAYER}],
    ids=["drop", "exit", "scope"],
)
def test_refuses_what_it_does_not_do(depth: dict) -> None:
    with pytest.raises(LiquidError, match="not supported"):
        LiquidForCausalLM(make_config({"depth": {**LINEAR, **depth}}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": {**LINEAR, "gate_span": [2, 1, 0, 0, 0, 0]}}, "inside an earlier span"),
        ({"depth": {**LINEAR, "gate_span": [0, 0, 0, 0, 0, 2]}}, "ends after the last layer"),
        ({"depth": {**LINEAR, "gate_span": [1]}}, "one entry per layer"),
        ({"depth": {"gate_kind": "linear"}}, "gate_span"),
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
    "family", ["llama4", "span3-scaled", "min-layers-span", "sliding", "temperature", "moe-renormalised"]
)
def test_one_token_at_a_time_with_a_memory_says_the_same(family: str) -> None:
    model = make_model(family)
    tokens = random_tokens(model.config, 1, 20, seed=3)
    out, cached = model(tokens), CachedReference(model)
    for i, token in enumerate(tokens[0].tolist()):
        logits, runs = cached.decode(0, token)
        assert runs == out.trace.run[0, i].tolist()
        torch.testing.assert_close(logits, out.logits[0, i], **CLOSE)
