"""Llama 4, alone or as the text part of the multimodal model, to GGUF architecture `llama4`, or to `liquid`.

`llama4` has its intervals, windows and temperatures built in: any other configuration is `liquid`, which reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

from liquidcli.errors import IntegrityError

from .. import fields
from ..config import MAX_LAYERS, Config
from ..experts import Layout
from ..fields import Field
from ..mixture import Mixture
from ..registry import Reason, arch, reasons
from ..tensors import Row, drop, prefixed
from ..windows import MAX_WINDOW
from .llama import refuse_foreign_maths

# ref: llama.cpp, models/llama4.cpp
STOCK_NO_ROPE_STEP, STOCK_CHUNK, STOCK_TEMPERATURE, STOCK_EXPERTS_WITHOUT_NORM = 4, 8192, (8192, 0.1), 128
TEXT = "language_model."
IMAGES = ("vision_model.", "multi_modal_projector.")
IMAGE_KEYS = ("vision_config", "image_token_index", "boi_token_index", "eoi_token_index", "image_token_id",
              "boi_token_id", "eoi_token_id")  # fmt: skip


@arch("Llama4ForCausalLM")
class Llama4(Mixture):
    gguf_name = "llama4"
    stock_keys: ClassVar = ("expert_feed_forward_length", "vocab_size", "rope.dimension_count")
    stock_windows = stock_factors = True
    dense_module = "feed_forward"
    expert_layout = Layout()
    defaults: ClassVar = {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
                          "rms_norm_eps": 1e-5, "rope_theta": 5e5}  # fmt: skip
    half_split = False

    def words_of(self, config: Config) -> dict[str, Any]:
        n_layer = config.integer("num_hidden_layers", high=MAX_LAYERS)
        rope_layers = self._rope_layers(config, n_layer)
        types = ["chunked_attention" if rope else "full_attention" for rope in rope_layers]
        size, scale = config.integer("intermediate_size"), config.number("attn_scale", 0.1)
        return {
            "moe_layers": self._moe_layers(config, n_layer),
            "num_local_experts": config.integer("num_local_experts", low=0),
            "num_experts_per_tok": config.integer("num_experts_per_tok", 1),
            "intermediate_size": size,
            "shared_expert_intermediate_size": size,
            "intermediate_size_mlp": config.integer("intermediate_size_mlp"),
            "scoring_func": "sigmoid",
            "expert_weight_before_ffn": True,
            "rope_layout": "norm",
            "no_rope_layers": rope_layers,
            "layer_types": list(config.items("layer_types", str, n_layer, default=types)),
            "attention_chunk_size": self._chunk_size(config),
            "qk_norm": "l2" if config.flag("use_qk_norm", True) else "none",
            "use_qk_norm": False,
            "attn_temperature_tuning": bool(config.raw("attn_temperature_tuning", True)) and scale > 0,  # once a number
            "attn_scale": scale or 0.1,
        }

    @staticmethod
    def _rope_layers(config: Config, n_layer: int) -> list[int]:
        """1 or 0 per layer; the list may be longer than the model, and an empty one is none."""
        step = config.integer("no_rope_layer_interval", 4)
        given = config.items("no_rope_layers", int, default=())
        if given and len(given) < n_layer:
            raise IntegrityError(f"config.json: no_rope_layers has {len(given)} entries for {n_layer} layers")
        return [int(one != 0) for one in given[:n_layer]] or [int((i + 1) % step != 0) for i in range(n_layer)]

    @staticmethod
    def _moe_layers(config: Config, n_layer: int) -> list[int]:
        step = config.integer("interleave_moe_layer_step", 1, low=0)
        return sorted(config.items("moe_layers", int, default=_every(step, n_layer)))

    @staticmethod
    def _chunk_size(config: Config) -> int | None:
        absent = "attention_chunk_size" not in config.values
        return config.integer("attention_chunk_size", 8192 if absent else None, high=MAX_WINDOW)

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        self.moe_step = config.integer("interleave_moe_layer_step", 1, low=0)
        super().__init__(config, present, exact_gate=exact_gate)

    def beyond_stock(self) -> list[Reason]:
        rope = [(i + 1) % STOCK_NO_ROPE_STEP != 0 for i in range(self.n_layer)]
        window = (self.window.kind, self.window.size, list(self.window.layers))
        own_norm = self.experts.count != STOCK_EXPERTS_WITHOUT_NORM
        wrong = {
            f"has no rotation in every layer of step {STOCK_NO_ROPE_STEP} (no_rope_layers says otherwise)": (
                self.rope_layers != tuple(map(int, rope))
            ),
            f"has chunks of {STOCK_CHUNK} in layers with rotation (attention_chunk_size and layer_types differ)": (
                window != ("chunked", STOCK_CHUNK, rope)
            ),
            "has temperatures of its own (attn_temperature_tuning, floor_scale and attn_scale differ)": (
                self.temperature != STOCK_TEMPERATURE
            ),
            f"has norms of q and k unless there are {STOCK_EXPERTS_WITHOUT_NORM} experts (use_qk_norm differs)": (
                (self.qk_norm == "l2") != own_norm
            ),
        }
        refused = {
            "has experts in every layer of a fixed step (moe_layers says otherwise)": (
                not self.experts.count or self.experts.layers != set(_every(self.moe_step, self.n_layer))
            ),
            "stops without a layer that has no rotation": all(rope),
        }
        return super().beyond_stock() + reasons(wrong, refused)

    def fields(self) -> list[Field]:
        return [*super().fields(), fields.u32("llama4.interleave_moe_layer_step", self.moe_step)]


@arch("Llama4ForConditionalGeneration")
class Llama4Text(Llama4):
    """The text part of the multimodal model."""

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        text = config.section("text_config")
        if text is None:
            raise IntegrityError("config.json has no text_config")
        refuse_foreign_maths(config)
        for name in (*IMAGE_KEYS, "tie_word_embeddings"):  # the text part says whether its matrices are tied
            config.raw(name)
        self.images = [name for name in present if name.startswith(IMAGES)]
        super().__init__(text, {name.removeprefix(TEXT) for name in present}, exact_gate=exact_gate)

    def rows(self) -> Iterator[Row]:
        yield from prefixed(super().rows(), TEXT)
        for name in self.images:
            yield drop(name, "only the text part is converted")


def _every(step: int, n_layer: int) -> list[int]:
    return list(range(step - 1, n_layer, step)) if step else []
