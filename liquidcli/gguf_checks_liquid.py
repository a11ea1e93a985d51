"""What must hold of the attention and expert keys of a `liquid` file, all of which are read from explicit keys.

Knows the architecture's own table. Gates are left to `gguf_checks_depth`, what `liquid` shares with `llama` to
`gguf_checks`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

from gguf import GGUFValueType

from .errors import IntegrityError, quote

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

_CHOICES = {
    "rope.type": ("norm", "neox", "none"),
    "attention.qk_norm": ("none", "head", "full", "l2"),
    "attention.window_type": ("none", "sliding", "chunked"),
    "feed_forward.activation": ("silu", "gelu"),
}
_PER_LAYER = ("rope.layers", "moe_layers")
_FLOATS = (
    "attention.temperature_scale", "attention.clamp_kqv", "expert_weights_scale", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)  # fmt: skip
_POSITIVE = ("embedding_scale", "attention.scale", "final_logit_softcapping", "rope.freq_base_swa")
_FLAGS = ("expert_weights_norm", "expert_weight_before_ffn")
_GATING_FUNCTIONS = (1, 2)  # softmax, sigmoid
_MAX_NUMBER = 1 << 31


def check_attention_keys(f: GGUFFile, n_layer: int) -> None:
    """Raise IntegrityError for the first key of the table with a value it does not have."""
    for name, choices in _CHOICES.items():
        if (value := _get(f, name, choices[0])) not in choices:
            _fail(f, name, value, f"one of {', '.join(choices)}")
    for name in _PER_LAYER:
        _check_per_layer(f, name, n_layer)
    for name in _FLOATS:
        value = _get(f, name, 0.0)
        if not isinstance(value, float) or not math.isfinite(value) or not _is(f, name, GGUFValueType.FLOAT32):
            _fail(f, name, value, "an f32 number")
    for name in _POSITIVE:
        value = _get(f, name, 1.0)
        if not isinstance(value, float) or not 0 < value < math.inf or not _is(f, name, GGUFValueType.FLOAT32):
            _fail(f, name, value, "an f32 number above zero")
    for name in _FLAGS:
        if not isinstance(_get(f, name, False), bool):
            _fail(f, name, _get(f, name), "true or false")
    _check_window(f, n_layer)
    _check_window_rope(f)


def expert_layers(f: GGUFFile, n_layer: int, n_expert: int) -> list[bool]:
    """Which layers are mixtures; all of them in a file with experts that does not say."""
    layers = [bool(value) for value in _get(f, "moe_layers", [n_expert > 0] * n_layer)]
    if not any(layers):
        return layers
    if not n_expert:
        _fail(f, "expert_count", 0, "the number of experts, as there are mixture layers")
    function = _get(f, "expert_gating_func")
    if function not in _GATING_FUNCTIONS or not _is(f, "expert_gating_func", GGUFValueType.UINT32):
        _fail(f, "expert_gating_func", function, "1 (softmax) or 2 (sigmoid)")
    if (activation := _get(f, "feed_forward.activation", "silu")) != "silu":
        _fail(f, "feed_forward.activation", activation, "silu, as there are mixture layers,")
    if "liquid.expert_weights_norm" not in f.metadata:
        _fail(f, "expert_weights_norm", None, "true or false")
    return layers


def _check_window(f: GGUFFile, n_layer: int) -> None:
    pattern = _get(f, "attention.sliding_window_pattern", 0)
    if isinstance(pattern, list):
        _check_per_layer(f, "attention.sliding_window_pattern", n_layer)
    else:
        _check_number(f, "attention.sliding_window_pattern", 0)
    _check_number(f, "attention.temperature_length", 0)
    _check_number(f, "attention.sliding_window", 0 if _get(f, "attention.window_type", "none") == "none" else 1)


def _check_window_rope(f: GGUFFile) -> None:
    """Layers with a base of their own are not scaled, which the runtime knows of linear scaling alone."""
    if "liquid.rope.freq_base_swa" not in f.metadata:
        return
    if (scaling := _get(f, "rope.scaling.type", "none")) not in ("none", "linear"):
        _fail(f, "rope.scaling.type", scaling, "none or linear, beside rope.freq_base_swa,")
    if "rope_freqs.weight" in f.tensors:
        _fail(f, "rope.freq_base_swa", _get(f, "rope.freq_base_swa"), "none beside rope_freqs.weight")


def _check_number(f: GGUFFile, name: str, least: int) -> None:
    value = _get(f, name, 0)
    is_number = isinstance(value, int) and not isinstance(value, bool) and _is(f, name, GGUFValueType.UINT32)
    if not is_number or not least <= value < _MAX_NUMBER:
        _fail(f, name, value, f"a u32 number of at least {least}")


def _check_per_layer(f: GGUFFile, name: str, n_layer: int) -> None:
    values = _get(f, name, [True] * n_layer)
    if not isinstance(values, list) or len(values) != n_layer or not all(value in (0, 1) for value in values):
        _fail(f, name, values, f"true or false for each of {n_layer} layers")


def _get(f: GGUFFile, name: str, default: Any = None) -> Any:
    return f.metadata.get(f"liquid.{name}", default)


def _is(f: GGUFFile, name: str, kind: GGUFValueType) -> bool:
    return f.metadata_types.get(f"liquid.{name}", (kind,)) == (kind,)


def _fail(f: GGUFFile, name: str, found: Any, wanted: str) -> NoReturn:
    said = "missing" if found is None else quote(found)
    raise IntegrityError(f"{f.path}: liquid.{name} is {said}, {wanted} was expected")
