"""What a model asks of the memory, and the refusal when there is too little."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from gguf import GGMLQuantizationType

from liquidcli.errors import MemoryFitError
from liquidcli.runtime import machine
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.kv_share import context_that_saves, kept_share
from liquidcli.runtime.machine import MemoryNeed, check_memory, memory_need

LLAMA_1B = {  # the shape of Llama-3.2-1B
    "general.architecture": "llama", "llama.block_count": 16, "llama.embedding_length": 2048,
    "llama.feed_forward_length": 8192, "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 128256,
}  # fmt: skip


def test_the_cache_is_counted_per_layer_head_and_type() -> None:
    need = memory_need(LLAMA_1B, 10**9, n_ctx=1024, n_ubatch=512)
    assert need.kv_bytes == 1024 * 16 * 8 * 64 * 2 * 2
    halved = memory_need(LLAMA_1B, 10**9, n_ctx=1024, n_ubatch=512, type_k="q8_0", type_v="q8_0")
    assert halved.kv_bytes == need.kv_bytes * 8.5 / 16
    per_layer = LLAMA_1B | {"llama.attention.head_count_kv": [8] * 8 + [0] * 8}
    assert memory_need(per_layer, 10**9, n_ctx=1024, n_ubatch=512).kv_bytes == need.kv_bytes / 2


def test_a_chat_computes_one_row_of_logits_and_what_is_held_twice_may_leave() -> None:
    class Tensor(NamedTuple):
        name: str
        type: GGMLQuantizationType
        size_bytes: int

    q4_0, q6_k = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q6_K
    tensors = [Tensor("blk.0.ffn_up.weight", q4_0, 700), Tensor("blk.0.ffn_down.weight", q6_k, 60),
               Tensor("token_embd.weight", q4_0, 5)]  # fmt: skip
    text = memory_need(LLAMA_1B, 1000, tensors, n_ctx=1024, n_ubatch=512)
    chat = memory_need(LLAMA_1B, 1000, tensors, n_ctx=1024, n_ubatch=512, n_outputs=1)
    assert text.compute_bytes - chat.compute_bytes == 512 * 4 * (128256 - 2 * 8192)
    assert chat.repacked_bytes == 700 == chat.total_bytes - chat.least_bytes


def test_own_key_lengths_are_used() -> None:
    wide = LLAMA_1B | {"llama.attention.key_length": 128, "llama.attention.value_length": 128}
    narrow = memory_need(LLAMA_1B, 0, n_ctx=64, n_ubatch=64)
    assert memory_need(wide, 0, n_ctx=64, n_ubatch=64).kv_bytes == 2 * narrow.kv_bytes


def test_a_refusal_has_the_numbers_and_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 2 * 10**9)
    check_memory(MemoryNeed(10**9, 0, 5 * 10**8, 10**8, 0), 4096)
    with pytest.raises(MemoryFitError) as failure:
        check_memory(MemoryNeed(10**9, 0, 3 * 10**9, 10**8, 0), 4096)
    assert "4.1 GB" in failure.value.message and "2.0 GB" in failure.value.message
    assert "-c N" in failure.value.hint
    with pytest.raises(MemoryFitError) as failure:
        check_memory(MemoryNeed(3 * 10**9, 0, 10**8, 0, 0), 4096)
    assert "quantization" in failure.value.hint


def test_the_smaller_of_memory_and_control_group_counts(monkeypatch, tmp_path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", meminfo)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_bytes() == 50 * 1024
    (tmp_path / "memory.max").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 10000\nfile 25000\n")
    assert machine.available_bytes() == 30000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_bytes() == 50 * 1024


def test_threads_of_one_core_count_once(monkeypatch, tmp_path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(machine, "_CPU", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cores() == 2
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.usable_cores() == 1


def test_where_skipped_layers_drop_keys_and_values_the_calibration_tells_how_many_stay() -> None:
    gated = {
        "liquid.depth.gate_span": [0, 1, 1], "liquid.depth.kv_policy": "drop", "liquid.depth.threshold": 0.5,
        "liquid.depth.calibration.threshold": [0.4, 0.6], "liquid.depth.calibration.executed_fraction": [0.9, 0.7],
    }  # fmt: skip
    full, half, tau = (DepthPolicy.parse(word) for word in ("full", "80%", "tau=0.55"))
    assert kept_share(gated) == pytest.approx(0.8), "at the model's own threshold"
    assert (kept_share(gated, full), kept_share(gated, half)) == (1.0, pytest.approx(0.8))
    assert kept_share(gated, tau) == pytest.approx(0.75)
    assert kept_share(gated, DepthPolicy.parse("tau=0.9")) == pytest.approx(0.7), "no further than was measured"
    assert kept_share(gated | {"liquid.depth.kv_policy": "project"}) == 1.0
    assert kept_share(gated | {"liquid.depth.gate_scope": ["layer", "ffn", "attn"]}) == 1.0
    assert kept_share({key: v for key, v in gated.items() if "calibration" not in key}) == 1.0
    assert kept_share(LLAMA_1B) == 1.0
    need = memory_need(LLAMA_1B, 10**9, n_ctx=1024, n_ubatch=512)
    assert memory_need(LLAMA_1B, 10**9, n_ctx=1024, n_ubatch=512, kv_share=0.5).kv_bytes == need.kv_bytes / 2


def test_from_which_context_on_a_process_needs_two_fifths_less() -> None:
    n = context_that_saves(10**8, 1000, 400)
    assert n is not None and 10**8 + 400 * n <= 0.6 * (10**8 + 1000 * n) < 10**8 + 400 * (n - 1) + 1000
    assert context_that_saves(10**8, 1000, 600) is None, "K and V alone do not save that much"
