"""Packs as the trainer writes them, joined to tiny random bases of each family: the library decides as the trainer did.

The bases are checkpoints of transformers, converted; random gates are pushed to skip about half of the time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liquidcli import converters
from liquidcli.errors import IntegrityError
from liquidcli.gates.apply import apply_pack
from liquidcli.gates.training.network import Gates, Network, load_base
from liquidcli.gates.training.options import Options
from liquidcli.gates.training.result import read_gates, write_gates
from liquidcli.gates.training.selftext import generate
from liquidcli.gates.training.train import train
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from tests.hf_models import CLOSE, make_config, native_logits, random_tokens, relative, save_random

N_LAYER, N_TOKENS, ALWAYS, ADAPTER = 6, 96, 3, 32
TIE = 1e-5  # logits
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn": "off", "n_threads": 1}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True,
         "head_dim": 16},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    family: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return "-".join([self.family, *(f"{name}={value}" for name, value in self.options.items())])


CASES = [Case(family, {}) for family in FAMILIES] + [
    Case("llama", {"span": 2}),
    Case("llama", {"scope": "attn"}),
    Case("llama", {"scope": "attn+ffn"}),
    Case("llama", {"kv": "drop"}),
    Case("llama", {"kv": "drop", "span": 2}),
    Case("llama", {"kv": "drop", "scope": "attn"}),
    Case("llama", {"rank": 4}),
    Case("llama", {"adapter_size": 0}),
    Case("qwen3", {"span": 2, "kv": "drop"}),
    Case("mistral-window", {"kv": "drop"}),
    Case("mixtral", {"scope": "ffn"}),
    Case("qwen2", {"rank": 2, "scope": "attn+ffn"}),
    Case("gemma3", {"span": 2, "rank": 2}),
    Case("gemma3", {"scope": "attn+ffn"}),
    Case("gemma3", {"kv": "drop", "span": 2}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("bases"), {}
    for name, (kind, words) in FAMILIES.items():
        config = make_config(kind, num_hidden_layers=N_LAYER, **words)
        made[name] = folder / f"{name}.gguf"
        plan = converters.plan(save_random(config, folder / name), outtype="f32")
        converters.run(plan, made[name])
    return made


def random_gates(network: Network, o: Options) -> Gates:
    """Weights and adapters of a size that matters, biases in the middle of what each gate says."""
    generator = torch.Generator().manual_seed(7)
    gates = Gates(o.places(N_LAYER), network.shape.n_embd, o.adapter_size)
    gates.add_updates(network.base, o.rank)
    tokens = torch.tensor([random_tokens(N_TOKENS, seed=3)])
    with torch.no_grad():
        gates.weight.normal_(generator=generator)
        gates.skip_down.normal_(std=0.2, generator=generator)
        for name, update in gates.updates.items():
            update.normal_(std=0.1 if name.endswith("b") else 0.05, generator=generator)
        gates.bias.zero_()
        for i in range(len(gates.places)):
            logits = network.gated(network.lower(tokens, 1), 1, gates)[1].logits[i]
            gates.bias[i] -= logits.median() + 1e-3
    return gates


def trained(base: Path, options: dict[str, Any], pack: Path) -> tuple[Network, Gates]:
    o = Options(**{"layers": (1, 2, 3, 4), "always_run_tokens": ALWAYS, "adapter_size": ADAPTER, **options})
    network = Network(load_base(base), ALWAYS, N_TOKENS, o.kv or "project")
    gates = random_gates(network, o)
    write_gates(base, pack, gates, n_layer=N_LAYER, always_run_tokens=ALWAYS, pairs=[(0.5, 0.8)], kv=o.kv or "project")
    with torch.no_grad():  # as they lie in the pack
        for parameter in (gates.skip_gate, gates.skip_up, gates.skip_down, *gates.updates.values()):
            parameter.copy_(parameter.half().float())
    return network, gates


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_library_decides_as_the_trainer_did(bases, tmp_path, case):
    base, out = bases[case.family], tmp_path / "out.gguf"
    network, gates = trained(base, case.options, tmp_path / "pack.gguf")
    apply_pack(base, tmp_path / "pack.gguf", out)
    same = total = 0
    with Engine.load(out, n_ctx=N_TOKENS, **EXACT) as engine, torch.no_grad():
        engine.set_depth(DepthPolicy.parse("auto"))
        engine.set_trace(True)
        for seed in range(8):
            tokens = random_tokens(N_TOKENS, seed=seed)
            h, trace = network.gated(network.lower(torch.tensor([tokens]), 1), 1, gates)
            expected = (network.final(h)[0] @ network.base.head.T).numpy()
            engine.clear()
            engine.reset_stats()
            found = engine.decode(tokens, logits="all")
            run = torch.stack(trace.run, -1)[0].bool().numpy()
            flips = engine.trace().run != run
            same, total = same + (~flips).sum(), total + flips.size
            if not flips.any():
                assert relative(found, expected) < CLOSE
            else:  # one within rounding of the threshold takes others with it
                assert torch.stack(trace.logits, -1)[0].abs().numpy()[flips].min() < TIE
            share = trace.executed(torch.ones(1, N_TOKENS), N_LAYER)
            assert engine.depth_stats().executed_fraction == pytest.approx(share, abs=2e-3)
    assert same / total >= 0.999 and 0.3 < run.mean() < 0.7


def test_a_pack_goes_on_from_what_was_written(bases, tmp_path):
    network, gates = trained(bases["qwen3"], {"scope": "attn+ffn"}, tmp_path / "pack.gguf")
    again = read_gates(tmp_path / "pack.gguf", network)
    assert again.places == gates.places
    torch.testing.assert_close(again.weight, gates.weight)
    torch.testing.assert_close(again.bias, gates.bias)
    ffn = [i for i, place in enumerate(gates.places) if place.scope == "ffn"]
    torch.testing.assert_close(again.skip_up[ffn], gates.skip_up[ffn])


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_a_fine_tune_is_refused(bases, tmp_path, family):
    trained(bases[family], {}, tmp_path / "pack.gguf")
    config = make_config(FAMILIES[family][0], num_hidden_layers=N_LAYER, **FAMILIES[family][1])
    other = tmp_path / "other.gguf"
    converters.run(converters.plan(save_random(config, tmp_path / "other", seed=1), outtype="f32"), other)
    with pytest.raises(IntegrityError, match="fine-tune") as error:
        apply_pack(other, tmp_path / "pack.gguf", tmp_path / "out.gguf")
    assert "\n" not in error.value.message and not (tmp_path / "out.gguf").exists()


def test_gemmas_forward_pass_is_the_librarys(tmp_path):
    sizes = {"num_hidden_layers": N_LAYER, "head_dim": 16, "query_pre_attn_scalar": 16, "vocab_size": 264}
    config, path = make_config("gemma3_text", sliding_window=24, **sizes), tmp_path / "gemma.gguf"
    converters.run(converters.plan(save_random(config, tmp_path / "gemma"), outtype="f32"), path)
    network, tokens = Network(load_base(path), 0, N_TOKENS), random_tokens(N_TOKENS, 264)
    with torch.no_grad():
        h = network.full(network.lower(torch.tensor([tokens]), 1), 1)
        expected = (network.final(h)[0] @ network.base.head.T).numpy()
    assert relative(native_logits(path, tokens), expected) < CLOSE


def test_the_base_writes_its_own_text_greedy_or_sampled(bases, tmp_path):
    path = tmp_path / "greedy.jsonl"
    n = generate(bases["llama"], path, 400, greedy=True, n_parallel=3, n_predict=24, n_threads=1)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert n == sum(len(record["tokens"]) for record in records) >= 400
    assert {record["temperature"] for record in records} == {0.0} and "article" not in {r["kind"] for r in records}
    with Engine.load(bases["llama"], n_ctx=256, **EXACT) as engine:
        one = records[0]
        logits = engine.decode(one["tokens"], logits="all")
        assert logits[one["n_prompt"] - 1 : -1].argmax(1).tolist() == one["tokens"][one["n_prompt"] :]
    before = path.read_text()
    assert generate(bases["llama"], path, 300, greedy=True) == n and path.read_text() == before
    generate(bases["llama"], path, n + 60, greedy=True, n_parallel=2, n_predict=24, n_threads=1)
    more = [json.loads(line)["tokens"] for line in path.read_text().removeprefix(before).splitlines()]
    assert more and not any(tokens in [record["tokens"] for record in records] for tokens in more)


def test_one_command_from_a_checkpoint_folder_to_a_pack_that_runs(bases, tmp_path):
    config = make_config("qwen2", num_hidden_layers=N_LAYER)
    folder, pack, out = save_random(config, tmp_path / "hf"), tmp_path / "p.gguf", tmp_path / "out.gguf"
    o = Options(
        data=("self:1500", "self:800:greedy:share=0.5"), target=0.9, layers=(2, 3), n_gates=2, adapter_size=32,
        harvest_tokens=600, epochs=2, tune_tokens=1024, threads=1, n_ctx=128, device="cpu",
    )  # fmt: skip
    report = train(folder, pack, o)
    kinds = {kind: found["executed_fraction"] for kind, found in report["held_out"].items()}
    assert set(kinds) == {"self", "self:greedy"} and min(kinds.values()) <= 0.91 and max(kinds.values()) >= 0.89
    converters.run(converters.plan(folder, outtype="f32"), tmp_path / "f32.gguf")
    apply_pack(tmp_path / "f32.gguf", pack, out)
    lines = [line for name in ("own", "own-greedy") for line in (tmp_path / f"p.gguf.state/{name}.jsonl").open()]
    rows = [json.loads(line)["tokens"][:128] for line in lines]
    with Engine.load(out, n_ctx=128, **EXACT) as engine:
        engine.set_depth(DepthPolicy.parse("auto"))
        shares = []
        for row in rows:
            engine.clear()
            engine.reset_stats()
            engine.decode(row, logits="none")
            shares.append(engine.depth_stats().executed_fraction)
    assert np.mean(shares) == pytest.approx(0.9, abs=0.05)
