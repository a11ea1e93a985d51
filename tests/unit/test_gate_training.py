"""The trainer's parts: its forward pass against the reference, its losses against autograd, its fits against planted
truth."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from liquidcli.errors import NotFoundError, UsageError
from liquidcli.gates.pack import read_pack
from liquidcli.gates.training import local, losses
from liquidcli.gates.training import train as training
from liquidcli.gates.training.balance import Price, balance, prices
from liquidcli.gates.training.data import Row, Rows, Source, distinct, own_answers, spaced
from liquidcli.gates.training.judge import Judge, calibrate
from liquidcli.gates.training.local_stage import logits, skip_level
from liquidcli.gates.training.network import Base, Gates, HardStep, Network, load_base
from liquidcli.gates.training.options import FROM_INIT, Options
from liquidcli.gates.training.result import recentre, spread
from liquidcli.gates.training.state import load
from liquidcli.gates.training.train import train
from liquidcli.gates.training.tune import Tuner
from liquidcli.gates.training.vocab import Vocabulary
from tests.gate_packs import write_base
from tests.gguf_bytes import FLOAT32, STRING, UINT32, GGUFBytes, Tensor
from tests.tiny import make_model, random_tokens
from tests.tiny_gguf import metadata, tensors

ALWAYS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A reference model with gates, and its plain base as a llama GGUF."""
    spans = [0, 1, 1, 0, 1, 0]
    depth = {
        "gate_kind": "linear",
        "gate_span": spans,
        "gate_bias": True,
        "adapter_size": 32,
        "always_run_tokens": ALWAYS,
    }
    model = make_model({"depth": depth, "rope_layout": "norm", "rope_theta": 5000.0})
    g = GGUFBytes({"general.architecture": (STRING, "llama")})
    for key, value in metadata(model.config).items():
        if key.split(".")[0] not in ("depth", "rope") and "attention.window" not in key and "qk_norm" not in key:
            g.keys[f"llama.{key}"] = (FLOAT32 if isinstance(value, float) else UINT32, value)
    g.keys["llama.rope.freq_base"] = (FLOAT32, 5000.0)
    for name, array in tensors(model).items():
        if ".depth_" not in name:
            g.tensors[name] = Tensor(array.shape[::-1], array.astype("<f4").tobytes())
    return model, g.write(tmp_path_factory.mktemp("tiny") / "base.gguf")


def gates_of(model) -> Gates:
    layers = list(model.config.gate_layers)
    gates = Gates(layers, model.config.hidden_size, model.config.depth.adapter_size)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers[j] for j in layers):
            gates.weight[i], gates.bias[i] = layer.depth_gate.head.weight[0], layer.depth_gate.head.bias[0]
            adapter = layer.depth_adapter
            gates.skip_gate[i], gates.skip_up[i] = adapter.gate_proj.weight.T, adapter.up_proj.weight.T
            gates.skip_down[i] = adapter.down_proj.weight.T
    return gates


def in_units(gates: Gates, base: Base) -> Gates:
    """Gates for the file's numbers become gates for those that are trained on."""
    names = {"weight": "depth_gate", "skip_gate": "depth_skip_gate", "skip_up": "depth_skip_up",
             "skip_down": "depth_skip_down"}  # fmt: skip
    with torch.no_grad():
        for (own, name), (i, layer) in itertools.product(names.items(), enumerate(gates.layers)):
            getattr(gates, own)[i] *= base.units.trained(f"blk.{layer}.{name}.weight")
    return gates


def test_the_forward_pass_is_the_references(tiny):
    model, path = tiny
    network = Network(load_base(path), ALWAYS, n_ctx=48)
    tokens = random_tokens(model.config, 4, 48, seed=5)
    with torch.no_grad():
        expected = model(tokens, depth="auto")
        hidden, trace = network.gated(network.lower(tokens, 1), 1, in_units(gates_of(model), network.base))
        full = network.final(network.full(network.lower(tokens, 2), 2))
        torch.testing.assert_close(full, model(tokens, depth="full").hidden, rtol=1e-4, atol=1e-4)
    run = torch.stack(trace.run, -1).bool()
    assert torch.equal(run, expected.trace.run) and 0.2 < run.float().mean() < 0.8 and run[:, :ALWAYS].all()
    torch.testing.assert_close(network.final(hidden), expected.hidden, rtol=1e-4, atol=1e-4)
    assert trace.executed(torch.ones(4, 48), 6) == pytest.approx(expected.trace.executed_fraction)


def test_gates_that_never_skip_leave_the_base_exactly(tiny):
    model, path = tiny
    network, gates = Network(load_base(path), 0, n_ctx=32), gates_of(model)
    with torch.no_grad():
        gates.bias.fill_(1e6)
        h = network.lower(random_tokens(model.config, 2, 32), 1)
        assert torch.equal(network.gated(h, 1, gates)[0], network.full(h, 1))


def test_distillation_has_autograds_gradient_and_none_at_the_teacher():
    torch.manual_seed(0)
    student, teacher, head = torch.randn(9, 16, requires_grad=True), torch.randn(9, 16), torch.randn(40, 16)
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 1.0])
    p, q = (teacher @ head.T).log_softmax(-1), (student @ head.T).log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    (expected * mask).sum().div(mask.sum()).backward()
    kl, grad = losses.distil(student.detach(), teacher, head, mask)
    torch.testing.assert_close(kl, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, student.grad, rtol=1e-4, atol=1e-6)
    assert losses.distil(teacher, teacher, head, mask)[1].abs().max() < 1e-6


def test_sampled_scores_estimate_the_fisher_information():
    torch.manual_seed(0)
    state, head = torch.randn(1, 4), torch.randn(7, 4)
    p = (state @ head.T).softmax(-1)[0]
    fisher = head.T @ (p.diag() - p[:, None] * p[None, :]) @ head
    scores = losses.sampled_score(state.expand(20000, 4).contiguous(), head, torch.Generator().manual_seed(1))
    torch.testing.assert_close(scores.T @ scores / len(scores), fisher, rtol=0.1, atol=0.02)
    assert scores.mean(0).abs().max() < 0.05


def test_a_sampled_cost_is_the_kl_of_a_small_skip():
    torch.manual_seed(0)
    state, head, d = torch.randn(1, 6), torch.randn(30, 6), 0.05 * torch.randn(1, 6)
    kl, _ = losses.distil(state + d, state, head, torch.ones(1))
    scores = losses.sampled_score(state.expand(40000, 6).contiguous(), head, torch.Generator().manual_seed(2))
    assert float(local.skip_cost(d, scores).mean()) == pytest.approx(float(kl), rel=0.1)


def test_the_hard_step_decides_hard_and_passes_a_gradient():
    z = torch.tensor([-3.0, -1e-6, 0.0, 1e-6, 3.0], requires_grad=True)
    run = HardStep.apply(z)
    run.sum().backward()
    assert run.tolist() == [0, 0, 0, 1, 1] and (z.grad > 0).all() and z.grad[2] == z.grad.max()


def planted(n: int = 3000, seed: int = 0, spread: float = 1.0):
    """One layer whose change depends on the state, and scores whose size depends on one direction of it."""
    rng = torch.Generator().manual_seed(seed)
    state, truth = torch.randn(1, n, 16, generator=rng), torch.randn(16, 16, generator=rng) * 0.3
    hard = state[..., :1]
    score = torch.randn(1, n, 16, generator=rng) * torch.exp(spread * hard)
    norms = {name: torch.ones(1, 1, 16) for name in ("attn_norm", "ffn_norm")}
    chunk = local.Harvest(state.bfloat16(), (state @ truth).bfloat16(), score.bfloat16())
    return local.Harvested([chunk], norms, 1e-5), hard[0, :, 0]


def test_gates_learn_the_logarithm_of_the_cost():
    data, hard = planted()
    gates = Gates([0], 16, 32)
    local.fit_gates(gates, data, data.cost(None, slice(0, data.n_rows)), ridge=0.1)
    with torch.no_grad():
        z = gates.logit(0, data.input("attn_norm", slice(0, data.n_rows)))[0]
    assert np.corrcoef(z.numpy(), hard.numpy())[0, 1] > 0.9
    cheap = z < z.quantile(0.3)
    cost = data.cost(None, slice(0, data.n_rows))[0]
    assert cost[cheap].mean() < 0.3 * cost.mean()


def test_a_prior_from_other_text_helps_gates_that_see_little():
    """Two texts with the same truth: few rows and what was learned from others beat few rows alone."""
    other, few, fresh = planted(seed=1)[0], planted(n=60, seed=2)[0], planted(seed=3)
    gates = Gates([0], 16, 32)

    def agreement(data, prior) -> float:
        local.fit_gates(gates, data, data.cost(None, slice(0, data.n_rows)), prior=prior)
        with torch.no_grad():
            z = gates.logit(0, fresh[0].input("attn_norm", slice(0, 3000)))[0]
        return float(np.corrcoef(z.numpy(), fresh[1].numpy())[0, 1])

    agreement(other, None)
    prior = gates.weight.detach().clone()
    assert agreement(few, prior) > agreement(few, None) + 0.05


def test_adapters_learn_what_a_layer_adds_on_rows_not_seen():
    data, _ = planted(spread=0.2)
    gates, rest = Gates([0], 16, 32, seed=1), slice(2500, data.n_rows)
    local.fit_adapters(gates, data, slice(0, 2500), epochs=30, lr=2e-2, batch=256)
    assert data.cost(gates, rest).mean() < 0.3 * data.cost(None, rest).mean()


def rows_of(model, n: int) -> list[Row]:
    return [Row(tokens) for tokens in random_tokens(model.config, n, 64, seed=3).tolist()]


def test_the_calibration_meets_the_share_asked_for(tiny):
    model, path = tiny
    judge, gates = Judge(Network(load_base(path), 0, n_ctx=64), rows_of(model, 6), 1), gates_of(model)
    pairs = recentre(gates, calibrate(judge, gates), 0.85)
    score = judge.score(gates)
    assert score.executed_fraction == pytest.approx(0.85, abs=0.02) and score.ppl > 0
    for tau, share in pairs:
        assert judge.executed(gates, math.log(tau / (1 - tau))) == pytest.approx(share, abs=1e-3)
    full = judge.score(gates, -1e6)
    assert full.ppl == pytest.approx(score.ppl_full) and full.kl == pytest.approx(0, abs=1e-6) and score.kl > 1e-4


def test_only_the_answer_of_a_chat_is_judged(tiny):
    model, path = tiny
    network, tokens = Network(load_base(path), 0, n_ctx=64), rows_of(model, 1)[0].tokens
    with torch.no_grad():
        logits = network.final(network.full(network.lower(torch.tensor([tokens]), 1), 1))[0] @ network.base.head.T
    picked = -logits.log_softmax(-1)[torch.arange(49, 63), torch.tensor(tokens[50:])]
    score = Judge(network, [Row(tokens, n_prompt=50)], 1).score(gates_of(model))
    assert score.ppl_full == pytest.approx(float(picked.mean().exp()), rel=1e-4)


def test_the_price_of_a_gate_is_what_opening_it_does(tiny):
    model, path = tiny
    judge, gates = Judge(Network(load_base(path), 0, n_ctx=64), rows_of(model, 4), 1), gates_of(model)
    found, before = prices(judge, gates, step=0.8), judge.score(gates)
    for i, one in enumerate(found):
        opened = gates_of(model)
        with torch.no_grad():
            opened.bias[i] -= 0.8
        after = judge.score(opened)
        assert one.kl == pytest.approx(after.kl - before.kl, abs=1e-5)
        assert one.skipped == pytest.approx(6 * (before.executed_fraction - after.executed_fraction), abs=1e-5)
    assert torch.equal(gates.bias, gates_of(model).bias) and any(one.skipped > 0.01 for one in found)


def test_balancing_raises_the_gate_that_costs_most():
    gates = Gates([1, 2, 3, 4], 8, 32)
    found = [Price(1, 0.1, 0.004), Price(2, 0.1, 0.002), Price(3, 0.1, -0.001), Price(4, 0.0, 0.5)]
    moves = balance(gates, found, trust=1.0, most=0.5)
    assert moves == pytest.approx([np.log(4 / 3), np.log(2 / 3), -0.5, 0.0])
    torch.testing.assert_close(gates.bias.detach(), 4 + torch.tensor(moves))


def write_tokens(path, n: int = 40, length: int = 50, seed: int = 0):
    rng = np.random.default_rng(seed)
    path.write_text("\n".join(json.dumps({"tokens": rng.integers(0, 16, length).tolist()}) for _ in range(n)))
    return path


def test_rows_repeat_from_a_seed_and_can_be_resumed(tmp_path):
    sources = [
        Source.parse(f"{write_tokens(tmp_path / 'a.jsonl')}:share=0.5"),
        Source.parse(str(write_tokens(tmp_path / "b.jsonl", seed=1))),
    ]
    make = lambda seed: Rows(sources, Vocabulary(tmp_path / "none"), tmp_path / "own", 32, seed)  # noqa: E731
    whole, resumed = make(1), make(1)
    rows = whole.take(20)
    resumed.skip(12)
    assert rows[12:] == resumed.take(8) and rows != make(2).take(20)
    assert {len(row.tokens) for row in rows} == {32}


def test_a_document_is_a_row_of_its_own_and_begins_it(tmp_path):
    rows = [{"tokens": [9] + [i] * length} for i, length in enumerate((20, 30, 90, 3))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    taken = Rows([Source.parse(str(tmp_path / "a.jsonl"))], Vocabulary(tmp_path), tmp_path, 64, 1).take(9)
    assert {(*row.tokens[:2], len(row.tokens)) for row in taken} == {(9, 0, 21), (9, 1, 31), (9, 2, 64)}


def test_the_prompt_of_a_chat_does_not_count(tmp_path):
    records = [
        {"kind": "chat", "n_prompt": 6, "tokens": list(range(20))},
        {"kind": "article", "n_prompt": 6, "tokens": list(range(20))},
        {"kind": "chat", "n_prompt": 40, "tokens": list(range(41))},  # its answer begins behind the row's end
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    taken = Rows([Source.parse(str(tmp_path / "a.jsonl"))], Vocabulary(tmp_path), tmp_path, 32, 1).take(4)
    assert {tuple(row.counts) for row in taken} == {(0.0,) * 5 + (1.0,) * 15, (1.0,) * 20}


def test_predictions_that_do_not_count_give_no_score():
    torch.manual_seed(0)
    state, head, counts = torch.randn(6, 4), torch.randn(7, 4), torch.tensor([0, 1, 0, 1, 1, 0.0])
    score = losses.sampled_score(state, head, torch.Generator().manual_seed(1), counts)
    assert torch.equal(score.abs().sum(-1) > 0, counts > 0)


def test_sources_say_what_is_wrong_with_them(tmp_path):
    path = write_tokens(tmp_path / "a.jsonl")
    assert Source.parse(f"{path}:spaced:lines=7:share=0.25") == Source(path, spaced=True, lines=7, share=0.25)
    assert Source.parse("self:5000").n_tokens == 5000
    named = write_tokens(tmp_path / "at 10:30:lines=2.jsonl")
    assert Source.parse(f"{named}:lines=7") == Source(named, lines=7) and Source.parse(str(named)) == Source(named)
    (tmp_path / "prose.txt").write_text("prose")
    wrong = (f"{path}:loud", "self", f"{tmp_path / 'prose.txt'}:chat")
    for text, kind in [(str(tmp_path / "no.txt"), NotFoundError), *((text, UsageError) for text in wrong)]:
        with pytest.raises(kind):
            Source.parse(text)


def test_spaced_text_sets_blanks_around_punctuation():
    assert spaced("Yes, sir. A well-known man's (old) hat").split() == (
        ["Yes", ",", "sir", ".", "A", "well", "@-@", "known", "man", "'s", "(", "old", ")", "hat"]
    )


@pytest.fixture
def options(tmp_path):
    data = str(write_tokens(tmp_path / "a.jsonl", n=60))
    return Options(
        data=(data,),
        target=0.8,
        n_gates=1,
        adapter_size=32,
        harvest_tokens=256,
        epochs=2,
        tune_tokens=128,
        batch_tokens=32,
        n_ctx=32,
        threads=1,
        always_run_tokens=2,
        layers=(1, 2),
    )


def test_a_run_makes_a_pack_and_its_report(tmp_path, options):
    told = []
    report = train(write_base(tmp_path / "base.gguf"), tmp_path / "p.gguf", options, progress=lambda *a: told.append(a))
    pack = read_pack(tmp_path / "p.gguf")
    assert list(pack.depth.layers) == report["gates"] and len(report["gates"]) == 1
    assert not pack.depth.ffn_scaled_by_gate and not pack.depth.adapter_scaled_by_gate
    assert pack.depth.always_run_tokens == 2 and len(pack.depth.calibration_threshold) >= 9
    assert [one["layer"] for one in report["balance"][0]] == report["gates"]
    assert len(report["curve"]) == 4 and told and json.loads((tmp_path / "p.gguf.json").read_text()) == report


@pytest.mark.parametrize("vocab_sample", [0, 8])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, options, vocab_sample, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    options = replace(options, vocab_sample=vocab_sample)
    base = write_base(tmp_path / "base.gguf")
    train(base, tmp_path / "whole.gguf", options)

    def stop(done: int, total: int, what: str) -> None:
        if "end to end" in what and done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "p.gguf", options, progress=stop)
    assert not (tmp_path / "p.gguf").exists()
    assert 0 < load(tmp_path / "p.gguf.state" / "tune.pt")["n_tokens"] < options.tune_tokens
    with pytest.raises(UsageError, match="earlier run"):
        train(base, tmp_path / "p.gguf", options)
    train(base, tmp_path / "p.gguf", options, resume=True)
    one, two = read_pack(tmp_path / "whole.gguf"), read_pack(tmp_path / "p.gguf")
    for name in one.tensors:
        np.testing.assert_allclose(one.tensors[name], two.tensors[name], rtol=1e-3, atol=1e-4)


def going_on(options: Options, pack: Path) -> Options:
    return replace(options, init=str(pack), **{name: getattr(Options, name) for name in FROM_INIT})


def test_a_run_goes_on_from_a_pack(tmp_path, options):
    base = write_base(tmp_path / "base.gguf")
    train(base, tmp_path / "first.gguf", options)
    gently = replace(going_on(options, tmp_path / "first.gguf"), local_lr=1e-6, lr=1e-6)
    report = train(base, tmp_path / "second.gguf", gently)
    first, second = read_pack(tmp_path / "first.gguf"), read_pack(tmp_path / "second.gguf")
    assert report["gates"] == list(first.depth.layers) and report["options"]["init"] == "first.gguf"
    for name in (name for name in first.tensors if "depth_skip" in name):
        np.testing.assert_allclose(first.tensors[name], second.tensors[name], rtol=2e-3, atol=2e-3)


def test_a_pack_is_tuned_on_without_being_priced_anew(tmp_path, options):
    base = write_base(tmp_path / "base.gguf")
    train(base, tmp_path / "first.gguf", options)
    gently = replace(going_on(options, tmp_path / "first.gguf"), harvest_tokens=0, gate_lr=1e-6, lr=1e-6)
    report = train(base, tmp_path / "second.gguf", gently)
    first, second = read_pack(tmp_path / "first.gguf"), read_pack(tmp_path / "second.gguf")
    assert report["local"] == [] and len(report["curve"]) == 4
    for name in (name for name in first.tensors if not name.endswith("bias")):
        np.testing.assert_allclose(first.tensors[name], second.tensors[name], atol=1e-4)
    with pytest.raises(UsageError, match="harvest-tokens 0"):
        replace(gently, init="").check()


def test_a_step_weighs_predictions_alike(tmp_path):
    """Two rows in one step have the gradient of the two together, however many of their predictions count."""
    base = load_base(write_base(tmp_path / "base.gguf"))
    network = Network(base, always_run_tokens=0, n_ctx=64)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, base.embed.shape[0], (2, 24), generator=generator)
    counts = torch.ones(2, 24)
    counts[1, :16] = 0
    pair = [(tokens[i : i + 1], counts[i : i + 1]) for i in range(2)]

    def stepped(rows):
        gates = Gates([1, 2], base.shape.n_embd, 32, seed=2)
        Tuner(network, gates, lr=1e-3, gate_lr=0.0, jitter=0.0).step(rows, 0.0)
        return gates.skip_down.grad

    torch.testing.assert_close(stepped(pair), stepped([(tokens, counts)]))


def test_a_sampled_vocabulary_has_the_sum_and_the_gradient_of_the_whole_in_the_mean():
    torch.manual_seed(3)
    head, student, teacher = torch.randn(400, 8), torch.randn(5, 8), torch.randn(5, 8)
    known, mask, generator = list(range(0, 60, 2)), torch.ones(5), torch.Generator().manual_seed(1)
    kl, grad = losses.distil(student, teacher, head, mask)
    every = losses.SampledHead(head, known, 1000).draw(generator)
    whole = losses.distil(student, teacher, every[0], mask, every[1])
    assert len(every[0]) == len(head) and not every[1].any()
    torch.testing.assert_close(whole, (kl, grad), rtol=1e-4, atol=1e-5)

    sampled = losses.SampledHead(head, known, 200)
    drawn = [sampled.draw(generator) for _ in range(300)]
    assert all(len(part) == len(known) + 200 and torch.equal(part[: len(known)], head[known]) for part, _ in drawn)
    sums = torch.stack([(student @ part.T + added).logsumexp(-1).exp() for part, added in drawn])
    torch.testing.assert_close(sums.mean(0), (student @ head.T).logsumexp(-1).exp(), rtol=0.05, atol=0)
    mean = torch.stack([losses.distil(student, teacher, part, mask, added)[1] for part, added in drawn]).mean(0)
    assert float(torch.cosine_similarity(mean.flatten(), grad.flatten(), 0)) > 0.99


def test_sixteen_bits_move_gradients_little(tmp_path):
    network = Network(load_base(write_base(tmp_path / "base.gguf")), always_run_tokens=0, n_ctx=64)
    tokens = torch.randint(0, len(network.base.embed), (1, 64), generator=torch.Generator().manual_seed(7))

    def stepped(precision: str) -> tuple[Gates, Any]:
        gates = Gates([1, 2], network.shape.n_embd, 32, seed=2)
        with torch.no_grad():
            gates.bias.copy_(torch.tensor([-2.0, 2.0]))  # the first skips, the second runs, whatever is rounded
        return gates, Tuner(network, gates, 1e-3, 1e-3, jitter=0.0, precision=precision).step(
            [(tokens, torch.ones(1, 64))], 0.0
        )

    (exact, wide), (rounded, narrow) = stepped("float32"), stepped("bfloat16")
    assert narrow.executed_fraction == wide.executed_fraction == 1 - 1 / network.shape.n_layer
    assert narrow.kl == pytest.approx(wide.kl, rel=0.1) and narrow.kl != wide.kl
    for name in ("skip_down", "weight"):
        a, b = (getattr(gates, name).grad.flatten() for gates in (exact, rounded))
        assert a.dtype == b.dtype == torch.float32 and float(torch.cosine_similarity(a, b, 0)) > 0.8


def test_what_cannot_be_trained_is_said():
    words = ({"kv": "keep"}, {"scope": "head"}, {"precision": "float16"})
    for wrong in (*words, {"span": 0}, {"target": 1.0}, {"adapter_size": 20}, {"span": 2, "scope": "ffn"}):
        with pytest.raises(UsageError):
            Options(**wrong).check()
    with pytest.raises(UsageError, match="tune-tokens"):
        Options(rank=4, tune_tokens=0).check()
    with pytest.raises(UsageError, match="in a row"):
        Options(span=2, layers=(1, 3, 5)).places(8)


def test_spans_tile_the_layers_asked_for_and_halves_are_two_gates():
    where = lambda **o: [(p.layer, p.span, p.scope) for p in Options(**o).places(12)]  # noqa: E731
    assert where(span=3) == [(2, 3, "layer"), (5, 3, "layer")]
    assert where(span=2, layers=(1, 2, 3, 6, 7)) == [(1, 2, "layer"), (6, 2, "layer")]
    assert where(scope="attn+ffn", layers=(4, 9)) == [(layer, 1, s) for layer in (4, 9) for s in ("attn", "ffn")]


def test_the_level_of_the_gates_that_are_kept_meets_the_target():
    """Twelve candidates with ever dearer skips, of which five are kept."""
    seen = torch.randn(12, 4000, 8, generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(n_rows=4000, input=lambda name, rows: seen[:, rows])
    gates = Gates(list(range(2, 14)), 8, 0)
    with torch.no_grad():
        gates.weight.fill_(0.3)
        gates.bias.copy_(torch.linspace(-2, 2, 12))
    level, kept = skip_level(data, gates, 0.9, 5, 16)
    assert [place.layer for place in kept] == [2, 3, 4, 5, 6]
    z = logits(data, gates)[:5]
    assert float((z < level).float().mean(1).sum()) == pytest.approx(0.1 * 16, abs=0.01)


def test_held_out_rows_have_something_to_score_and_are_spread():
    rows = [Row(list(range(64 + i)), n_prompt=0) for i in range(15)]
    assert [len(row.tokens) - 64 for row in spread(rows, 8, 512)] == [0, 1, 3, 5, 7, 9, 11, 13]
    assert spread([Row(list(range(600)), 550), Row(list(range(80)), 80), Row(list(range(80)), 90)], 8, 512) == []
    assert Row([1, 2, 3], 9).counts == [0.0] * 3


def test_a_tenth_of_every_kind_of_own_text_is_held_out_half_of_its_articles_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr(Vocabulary, "spelled", lambda self, tokens: f"{tokens[0]}")
    monkeypatch.setattr(Vocabulary, "document", lambda self, text: [-int(text)])
    records = [{"kind": "article", "tokens": [i, *range(1000, 1100)]} for i in range(40)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = [own_answers(tmp_path / "own.jsonl", Vocabulary(tmp_path), held_out=told) for told in (True, False)]
    assert [row.tokens[0] for row in found[0]] == [0, -10, 20, -30]
    assert len(found[1]) == 36 and sum(row.tokens[0] < 0 for row in found[1]) == 20


def test_answers_that_run_in_a_loop_are_left_out(tmp_path):
    loop, prose = [1, 2, 3, 4] * 30, list(range(120))
    assert distinct(loop) < 0.1 and distinct(prose) == 1
    records = [{"kind": "chat", "tokens": tokens} for tokens in (loop, loop, prose, prose)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert own_answers(tmp_path / "own.jsonl", Vocabulary(tmp_path), held_out=False) == [Row(prose), Row(prose)]
    assert own_answers(tmp_path / "own.jsonl", Vocabulary(tmp_path), held_out=True) == []
