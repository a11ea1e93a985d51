"""Mixtures by transformers: where a stock architecture is written, it is upstream's converter's file, bit for bit.

And where it is not, upstream's file computes something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liquidcli.gguf_file import open_gguf
from tests.convert_oracle import MARKS, Case, check_ours_is_theirs, run_upstream
from tests.hf_models import make_config, native_logits, random_tokens, reference_logits, relative, save_random
from tests.native import test_converted_moe as varied

pytestmark = MARKS
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
MIXTRAL = {"num_local_experts": 4}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 32}
OLMOE = {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}
LLAMA4 = {"num_local_experts": 4, "intermediate_size_mlp": 80, "head_dim": 16, "num_hidden_layers": 5}
SCOUT = {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
VISION = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip


class Multimodal(Case):
    """The configuration is the text part's."""

    def write(self, folder: Path) -> Path:
        from transformers import AutoConfig, Llama4ForConditionalGeneration

        text = make_config("llama4_text", **self.config).to_dict()
        config = AutoConfig.for_model("llama4", text_config=text, vision_config=VISION)
        return save_random(config, folder, dtype=self.dtype, kind=Llama4ForConditionalGeneration)


def case(model_type: str, words: dict[str, Any], outtype: str = "f16", dtype: str = "float32", **options: Any) -> Case:
    return Case(words, outtype, dtype, model_type, **options)


CASES: dict[str, Case] = {
    "mixtral": case("mixtral", MIXTRAL),
    "mixtral-window": case("mixtral", {**MIXTRAL, "sliding_window": 24}, stock=True),
    "mixtral-llama3": case("mixtral", {**MIXTRAL, "rope_parameters": LLAMA3, "head_dim": 32}, "bf16", "bfloat16"),
    "mixtral-q8_0": case("mixtral", {**MIXTRAL, "tie_word_embeddings": True}, "q8_0", "bfloat16"),
    "qwen3moe": case("qwen3_moe", QWEN),
    "qwen3moe-yarn": case("qwen3_moe", {**QWEN, "rope_parameters": YARN}, "bf16", "bfloat16"),
    "qwen3moe-weights": case("qwen3_moe", {**QWEN, "norm_topk_prob": False}, stock=True),
    "qwen3moe-window": case("qwen3_moe", {**QWEN, "use_sliding_window": True, "sliding_window": 24}, stock=True),
    "qwen3moe-odd": case("qwen3_moe", {**QWEN, "moe_intermediate_size": 40, "tie_word_embeddings": True}, "q8_0"),
    "qwen3moe-fused": case("qwen3_moe", QWEN, "bf16", "bfloat16", save={"save_original_format": False}),
    "olmoe": case("olmoe", OLMOE),
    "olmoe-renormalised": case("olmoe", {**OLMOE, "norm_topk_prob": True}, stock=True),
    "olmoe-shards": case("olmoe", OLMOE, "auto", "bfloat16", save={"max_shard_size": "50KB"}),
    "llama4": case("llama4_text", LLAMA4),
    "llama4-maverick": case("llama4_text", {**LLAMA4, "interleave_moe_layer_step": 2}, "q8_0", "bfloat16"),
    "llama4-chunks": case("llama4_text", {**LLAMA4, "attention_chunk_size": 24, "floor_scale": 8}, stock=True),
    "llama4-interval": case("llama4_text", {**LLAMA4, "no_rope_layer_interval": 2}, stock=True),
    "llama4-scout": case("llama4_text", {**LLAMA4, "rope_parameters": SCOUT}, "bf16", "bfloat16"),
    "llama4-multimodal": Multimodal(LLAMA4),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_upstream(CASES, tmp_path_factory.mktemp("mixtures"))


@pytest.mark.parametrize("name", CASES)
def test_ours_is_theirs(name: str, folders: Path, tmp_path: Path) -> None:
    check_ours_is_theirs(CASES[name], folders / name, tmp_path / "ours.gguf")


def test_the_cases_are_what_they_say(folders: Path) -> None:
    assert len(list((folders / "olmoe-shards" / "model").glob("*.safetensors"))) > 2
    with open_gguf(folders / "qwen3moe-odd" / "theirs.gguf") as f:
        assert {f.tensors[f"blk.0.ffn_{part}_exps.weight"].type.name for part in ("up", "down")} == {"Q8_0", "F16"}
    with open_gguf(folders / "llama4-maverick" / "theirs.gguf") as f:
        assert {"blk.0.ffn_up.weight", "blk.1.ffn_up_exps.weight"} < set(f.tensors)
    with open_gguf(folders / "llama4-scout" / "theirs.gguf") as f:
        assert set(f.array("rope_freqs.weight").tolist()) == {1.0, 8.0}


# upstream leaves out what its own loader would not read, and gives every OLMoE the same epsilon
SILENT = (*varied.SILENT, "qwen3-llama3", "qwen3-yarn", "olmoe-eps")


@pytest.fixture(scope="session")
def varied_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = {name: case(varied.CASES[name][0], varied.words_of(name), "f32") for name in SILENT}
    return run_upstream(cases, tmp_path_factory.mktemp("varied"))


@pytest.mark.parametrize("name", SILENT)
def test_theirs_is_wrong(name: str, varied_folders: Path) -> None:
    tokens, folder = random_tokens(varied.N_TOKENS), varied_folders / name
    wanted = reference_logits(folder / "model", tokens)
    assert relative(native_logits(folder / "theirs.gguf", tokens), wanted) > varied.WRONG
