"""Which tensor gets which type: tables that follow llama-quantize's name rules, and the rules for depth tensors.

Knows names, positions and a model's few facts; never opens a file. A change here is a change of the golden tables.
ref: llama.cpp src/llama-quant.cpp, the facts of which these tables restate
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGMLQuantizationType as T

# category <- the first pattern that a tensor's name equals (=) or contains
CATEGORIES = (
    ("output", "=output.weight"),
    ("token_embd", "=token_embd.weight"),
    ("token_embd", "=per_layer_token_embd.weight"),
    ("attn_v", "attn_qkv.weight"),
    ("attn_v", "attn_kv_b.weight"),
    ("attn_v", "attn_v.weight"),
    ("attn_k", "attn_k.weight"),
    ("attn_q", "attn_q.weight"),
    ("attn_output", "attn_output.weight"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
# reason <- parts of names that stay as they are; what is not two-dimensional or no `weight` stays anyway
KEPT = {
    "gate": ("depth_gate",),
    "norm": ("_norm.weight",),
    "expert router": ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    "very small": (
        "altup", "laurel", "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight",
        "indexer.k_proj.weight", "indexer.q_proj.weight",
    ),
    "recurrent state": tuple(
        f"time_mix_{name}.weight"
        for name in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2",
                     "lerp_fused")
    ),
    "position": ("attn_rel_b.weight", ".position_embd", "sam.pos_embd", ".rel_pos", ".patch_embd"),
    "vision": ("sam.neck.", "sam.net_", ".patch_merger"),
    "audio": ("a.rvq.codebook", "mm.a.code_embd"),
}  # fmt: skip
KEPT_WHOLE_NAMES = {"position": ("position_embd.weight", "token_types.weight")}
KEPT_BY_ARCHITECTURE = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
Q8_0_BY_ARCHITECTURE = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
# architecture, layers: sizes that upstream calls "70B", where eight heads share one attn_v
SEVENTY_B = (("llama", 80), ("liquid", 80), ("deci", 80), ("olmo", 80), ("qwen2", 80), ("jais2", 68))
SEVENTY_B_ONLY_WITH_GQA = ("llama", "liquid")
# what a type becomes where a row does not divide into its blocks; F16 where that does not fit either
FALLBACK = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
# depth tensor -> the feed-forward tensors of its layer whose type it takes, the first that is there
FOLLOWS = {
    "depth_skip_gate": ("ffn_gate", "ffn_gate_exps", "ffn_up", "ffn_up_exps"),
    "depth_skip_up": ("ffn_up", "ffn_up_exps"),
    "depth_skip_down": ("ffn_down", "ffn_down_exps"),
}


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a model."""

    architecture: str
    n_layer: int
    n_expert: int
    is_70b: bool
    has_imatrix: bool


@dataclass(frozen=True)
class Row:
    """`type` where all conditions hold; within a category the first such row counts."""

    type: T
    conditions: tuple[str, ...]


def _row(kind: T, *conditions: str) -> Row:
    return Row(kind, conditions)


_EIGHT_EXPERTS = _row(T.Q8_0, "eight_experts")
_ATTN_K = (_EIGHT_EXPERTS,)
# file type -> category -> rows; a category without a row that holds gets the file type's default
RULES: dict[str, dict[str, tuple[Row, ...]]] = {
    "Q4_0": {
        "attn_v": (_EIGHT_EXPERTS,),
        "attn_k": _ATTN_K,
        "ffn_down": (_row(T.Q4_1, "imatrix", "first_eighth"),),
    },
    "Q4_1": {"attn_v": (_EIGHT_EXPERTS,), "attn_k": _ATTN_K},
    "Q5_0": {
        "attn_v": (_EIGHT_EXPERTS,),
        "attn_k": _ATTN_K,
        "ffn_down": (_row(T.Q5_1, "imatrix", "first_eighth"),),
    },
    "Q5_1": {"attn_v": (_EIGHT_EXPERTS,), "attn_k": _ATTN_K},
    "Q4_K_S": {
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "first_four"), _row(T.Q5_K, "70b")),
        "attn_k": _ATTN_K,
        "attn_output": (_row(T.Q5_K, "eight_experts", "not_falcon"),),
        "ffn_down": (_row(T.Q5_K, "not_falcon", "first_eighth"),),
    },
    "Q4_K_M": {
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q6_K, "more_bits"), _row(T.Q5_K, "70b")),
        "attn_k": _ATTN_K,
        "attn_output": (_row(T.Q5_K, "eight_experts", "not_falcon"),),
        "ffn_down": (
            _row(T.Q6_K, "falcon", "first_sixteenth"),
            _row(T.Q5_K, "falcon", "more_bits"),
            _row(T.Q6_K, "not_falcon", "more_bits"),
        ),
    },
    "Q5_K_S": {"attn_v": (_EIGHT_EXPERTS,), "attn_k": _ATTN_K},
    "Q5_K_M": {
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q6_K, "more_bits")),
        "attn_k": _ATTN_K,
        "ffn_down": (_row(T.Q6_K, "more_bits"),),
    },
    "Q6_K": {"attn_v": (_EIGHT_EXPERTS,), "attn_k": _ATTN_K},
    "Q8_0": {},
}


def more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


CONDITIONS = {
    "more_bits": lambda facts, i, n: more_bits(i, n),
    "first_eighth": lambda facts, i, n: i < n // 8,
    "first_sixteenth": lambda facts, i, n: i < n // 16,
    "first_four": lambda facts, i, n: i < 4,
    "eight_experts": lambda facts, i, n: facts.n_expert == 8,
    "70b": lambda facts, i, n: facts.is_70b,
    "imatrix": lambda facts, i, n: facts.has_imatrix,
    "falcon": lambda facts, i, n: facts.architecture == "falcon",
    "not_falcon": lambda facts, i, n: facts.architecture != "falcon",
}


def category(name: str) -> str:
    for kind, pattern in CATEGORIES:
        if name == pattern[1:] if pattern.startswith("=") else pattern in name:
            return kind
    return "other"


def kept(name: str, shape: tuple[int, ...], architecture: str, leave_output_tensor: bool) -> str | None:
    """Why a tensor stays as it is, or None. `shape` without trailing ones."""
    if len(shape) < 2:
        return "one-dimensional"
    if not name.endswith("weight"):
        return "no weight matrix"
    for reason, parts in KEPT.items():
        if any(part in name for part in parts) or name in KEPT_WHOLE_NAMES.get(reason, ()):
            return f"{reason}: never quantized"
    if any(part in name for part in KEPT_BY_ARCHITECTURE.get(architecture, ())):
        return "never quantized in this architecture"
    if leave_output_tensor and name == "output.weight":
        return "--leave-output-tensor"
    return None


def choose(file_type: str, default: T, kind: str, facts: Facts, i: int, n: int) -> tuple[T, str]:
    """The type of a tensor of category `kind`, the i-th of n, and why."""
    for row in RULES[file_type].get(kind, ()):
        if all(CONDITIONS[condition](facts, i, n) for condition in row.conditions):
            return row.type, f"{kind}: {', '.join(row.conditions)}"
    return default, "default"


def output_type(default: T, architecture: str, fits: bool) -> tuple[T, str]:
    """For the output matrix, or the token embeddings that double as one."""
    if architecture == "falcon" or not fits or default is T.Q8_0:
        return T.Q8_0, "output"
    return T.Q6_K, "output"
