"""Every kind of gate through the whole trainer, on tiny bases where some tokens need a layer and others do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liquidcli.gates.pack import read_pack
from liquidcli.gates.training import train as training
from liquidcli.gates.training.data import Row
from liquidcli.gates.training.judge import Judge, Score
from liquidcli.gates.training.network import Gates, Network, load_base
from liquidcli.gates.training.options import Options
from liquidcli.gates.training.result import read_gates
from liquidcli.gates.training.train import train
from tests.gguf_bytes import Tensor, llama

N_LAYER, N_EMBD, N_VOCAB, N_CTX = 6, 32, 16, 64
VARIANTS: dict[str, dict[str, Any]] = {
    "layer": {"adapter_size": 0},
    "span-drop": {"kv": "drop", "span": 2, "adapter_size": 0},
    "attn": {"scope": "attn", "target": 0.95},
    "ffn": {"scope": "ffn", "adapter_size": 0, "target": 0.9},
    "halves": {"scope": "attn+ffn", "n_gates": 4},
    "gates-tuned": {"gate_lr": 0.02},
}


def toy(path: Path) -> Path:
    """Layers 1 to 4 add much to tokens 0 to 7 and next to nothing to tokens 8 to 15: a direction of the state tells
    which is which."""
    g, rng = llama(N_LAYER, n_embd=N_EMBD), np.random.default_rng(0)
    put = lambda name, array: g.tensors.__setitem__(  # noqa: E731
        name, Tensor(array.shape[::-1], array.astype("<f4").tobytes())
    )
    n_vocab = g.tensors["token_embd.weight"].shape[1]
    embed = rng.standard_normal((n_vocab, N_EMBD))
    embed[:, 0] = np.where(np.arange(n_vocab) < N_VOCAB // 2, 4.0, -4.0)
    put("token_embd.weight", embed)
    put("output.weight", 0.15 * rng.standard_normal((n_vocab, N_EMBD)))
    for name, tensor in list(g.tensors.items()):
        if name.endswith("_norm.weight"):
            put(name, np.ones(tensor.shape))
        elif ".attn_output" in name:
            put(name, still(0.002 * rng.standard_normal(tensor.shape[::-1])))
        elif ".ffn_gate" in name:
            gate = 0.1 * rng.standard_normal(tensor.shape[::-1])
            gate[:, 0] = 2.0  # silu shuts where the first feature is negative
            put(name, gate)
        elif ".ffn_up" in name:
            put(name, 0.25 * rng.standard_normal(tensor.shape[::-1]))
        elif ".ffn_down" in name:
            put(name, still(0.03 * rng.standard_normal(tensor.shape[::-1])))
    return g.write(path)


def still(matrix: np.ndarray) -> np.ndarray:  # [n_embd, n_in]
    """Writes nothing into the feature that tells tokens apart."""
    matrix[0] = 0
    return matrix


def texts(n: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, (n, N_CTX)).tolist()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("toy") / "base.gguf")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    data, held = tmp_path / "data.jsonl", tmp_path / "held.jsonl"
    data.write_text("\n".join(json.dumps({"tokens": row}) for row in texts(120, seed=1)))
    held.write_text("\n".join(json.dumps({"tokens": row}) for row in texts(12, seed=2)))
    return Options(
        data=(str(data),), valid=(str(held),), valid_rows=12, target=0.85, n_gates=2, adapter_size=32,
        harvest_tokens=1200, epochs=2, tune_tokens=480, batch_tokens=N_CTX, n_ctx=N_CTX, threads=1, always_run_tokens=2,
        layers=(1, 2, 3, 4), device="cpu",
    )  # fmt: skip


def judged(base: Path, pack: Path, o: Options) -> tuple[Judge, Gates]:
    network = Network(load_base(base), o.always_run_tokens, N_CTX, o.kv or "project")
    return Judge(network, [Row(tokens) for tokens in texts(12, seed=3)], 1), read_gates(pack, network)


@pytest.mark.parametrize("name", VARIANTS)
def test_shares_come_near_the_target_and_easy_tokens_skip(base, options, tmp_path, name):
    o = replace(options, **VARIANTS[name])
    report = train(base, tmp_path / "p.gguf", o)
    judge, gates = judged(base, tmp_path / "p.gguf", o)
    score = judge.score(gates)
    assert score.executed_fraction == pytest.approx(o.target, abs=0.03)
    assert report["gates"] == gates.layers
    assert any("skip" in name for name in read_pack(tmp_path / "p.gguf").tensors) == (gates.skip_gate.shape[2] > 0)
    if not o.adapter_size:  # nothing makes up for a layer that is missed
        assert score.kl < 0.5 * shuffled(judge, gates, score).kl


def shuffled(judge: Judge, gates: Gates, score: Score) -> Score:
    """The same adapters and, as nearly as can be, the same share; gates that look elsewhere."""
    with torch.no_grad():
        gates.weight.copy_(gates.weight[:, torch.randperm(N_EMBD, generator=torch.Generator().manual_seed(1))])
        gates.weight[:, 0] = 0
    shares = [(abs(judge.executed(gates, z) - score.executed_fraction), z) for z in np.linspace(-12, 12, 97)]
    return judge.score(gates, min(shares)[1])


def test_low_rank_updates_are_trained_and_the_control_is_the_untouched_base(base, options, tmp_path):
    ranked = train(base, tmp_path / "ranked.gguf", replace(options, rank=2))
    updates = read_pack(tmp_path / "ranked.gguf").lora
    assert updates and all(a.shape[0] == b.shape[1] == 2 for a, b in updates.values())
    assert any(np.abs(b).max() > 0 for _, b in updates.values())
    layers = {int(name.split(".")[1]) for name in updates}
    assert min(layers) == min(ranked["gates"])
    kept = sum(path.stat().st_size for path in (tmp_path / "ranked.gguf.state").rglob("*") if path.is_file())
    assert kept < 20 * (tmp_path / "ranked.gguf").stat().st_size  # what remains of a finished run is small
    network = Network(load_base(base), 2, N_CTX)
    untouched = Judge(network, [Row(tokens) for tokens in texts(12, seed=2)], 1).score(Gates([1], N_EMBD, 0), -1e9)
    assert ranked["held_out"]["held.jsonl"]["ppl_full"] == pytest.approx(untouched.ppl_full, rel=1e-4)
    assert len(ranked["curve"]) == 8 and ranked["local"][0]["cost_bare"] > 0


def test_stopped_and_resumed_and_shortened_runs_agree(base, options, tmp_path, monkeypatch):
    """Within a point of share and half a percent of perplexity."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    o = replace(options, gate_lr=0.005)
    train(base, tmp_path / "whole.gguf", o)

    def stop(done: int, total: int, what: str) -> None:
        if "end to end" in what and done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "halves.gguf", o, progress=stop)
    assert (tmp_path / "halves.gguf.state" / "tune.pt").exists()
    train(base, tmp_path / "halves.gguf", replace(o, threads=2), resume=True)
    torch.set_num_threads(1)
    train(base, tmp_path / "short.gguf", replace(o, tune_tokens=o.tune_tokens // 5))
    scores = []
    for name in ("whole", "halves", "short"):
        judge, gates = judged(base, tmp_path / f"{name}.gguf", o)
        scores.append(judge.score(gates))
    for score in scores[1:]:
        assert score.executed_fraction == pytest.approx(scores[0].executed_fraction, abs=0.01)
        assert score.ppl == pytest.approx(scores[0].ppl, rel=0.005)
