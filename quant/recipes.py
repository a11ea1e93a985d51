"""Which tensor gets which type: tables that follow llama-quantize's name rules, and the rules for depth tensors.

Knows names, positions and a model's few facts; never opens a file. A change here is a change of the golden tables.
ref: llama.cpp src/llama-quant.cpp, the facts of which these tables restate
"""

from __future__ import annotations

from collections.abc import Callable
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
FALLBACK = {
    **dict.fromkeys((T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
if "Q2_0" in T.__members__:
    FALLBACK[T["Q2_0"]] = T.Q4_0
# of the output matrix, where it is not Q6_K
OUTPUT = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"), T.Q5_K),
    "MXFP4_MOE": T.Q8_0,
    "Q8_0": T.Q8_0,
}
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
    n_gqa: int  # heads that share one key, in the first layer
    is_70b: bool
    has_imatrix: bool


@dataclass(frozen=True)
class Place:
    """Where a tensor stands among those of its category."""

    i: int = 0  # its layer in a model with experts, else how many came before
    n: int = 0
    seen: int = 0  # how many came before
    n_matrices: int = 1  # of a stack of experts


@dataclass(frozen=True)
class Row:
    """`type` where all conditions hold; within a category the first such row counts."""

    type: T
    conditions: tuple[str, ...]


def _row(kind: T, *conditions: str) -> Row:
    return Row(kind, conditions)


_EIGHT_EXPERTS = _row(T.Q8_0, "eight_experts")
_SHARED_70B, _SHARED = _row(T.Q5_K, "70b", "gqa4"), _row(T.Q4_K, "gqa4")
_OUTPUT_8X = _row(T.Q5_K, "eight_experts", "not_falcon")
_USUAL: dict[str, tuple[Row, ...]] = {"attn_v": (_EIGHT_EXPERTS,), "attn_k": (_EIGHT_EXPERTS,)}


def _two_bits(small: T, output: T | None, embeddings: T) -> dict[str, tuple[Row, ...]]:
    """The recipe that the types of 1 and 2 bits from a codebook share."""
    return {
        "token_embd": (_row(embeddings),),
        "attn_v": (_row(T.Q4_K, "gqa4"), _row(T.Q4_K, "four_experts"), _row(small)),
        "attn_k": (_row(T.Q4_K, "eight_experts"),),
        "attn_output": (_row(T.Q5_K, "eight_experts"), *([_row(output)] if output is not None else [])),
        "ffn_down": (_row(small, "first_eighth_seen"),),
    }


# file type -> category -> rows; a category without a row that holds gets the file type's default
RULES: dict[str, dict[str, tuple[Row, ...]]] = {
    "IQ1_S": _two_bits(T.Q2_K, T.IQ2_XXS, T.Q2_K),
    "IQ1_M": _two_bits(T.Q2_K, T.IQ2_XXS, T.Q2_K),
    "IQ2_XXS": _two_bits(T.Q2_K, None, T.Q2_K),
    "IQ2_XS": _two_bits(T.Q2_K, None, T.Q2_K),
    "IQ2_S": _two_bits(T.IQ3_S, T.IQ3_S, T.IQ3_S),
    "IQ2_M": _two_bits(T.IQ3_S, T.IQ3_S, T.IQ3_S),
    **{name: {**_USUAL, "token_embd": (_row(T.Q4_K),)} for name in ("TQ1_0", "TQ2_0", "Q2_0")},
    "Q1_0": _USUAL,
    "Q2_K": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _SHARED_70B, _SHARED, _row(T.Q5_K, "70b"), _row(T.Q3_K)),
        "attn_output": (_OUTPUT_8X, _row(T.Q3_K, "not_falcon")),
        "ffn_down": (_row(T.Q3_K),),
    },
    "Q2_K_S": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _SHARED_70B, _SHARED),
        "ffn_down": (_row(T.Q4_K, "first_eighth"),),
    },
    "IQ3_XXS": {
        "token_embd": (_row(T.IQ3_S),),
        "attn_v": (_EIGHT_EXPERTS, _SHARED_70B, _SHARED, _row(T.IQ3_S, "no_imatrix")),
        "attn_k": (_EIGHT_EXPERTS, _row(T.IQ2_S)),
        "attn_q": (_row(T.IQ2_S),),
        "attn_output": (_OUTPUT_8X, _row(T.IQ3_S, "not_falcon")),
        "ffn_down": (_row(T.Q4_K, "no_imatrix", "first_eighth"), _row(T.Q3_K, "no_imatrix")),
    },
    "IQ3_XS": {
        "attn_v": (_EIGHT_EXPERTS, _SHARED_70B, _SHARED),
        "attn_k": (_EIGHT_EXPERTS, _row(T.IQ3_XXS)),
        "attn_q": (_row(T.IQ3_XXS),),
        "attn_output": (_OUTPUT_8X,),
        "ffn_gate": (_row(T.IQ3_XXS, "middle"),),
        "ffn_up": (_row(T.IQ3_XXS, "middle"),),
    },
    "IQ3_S": {**_USUAL, "attn_v": (_EIGHT_EXPERTS, _SHARED_70B, _SHARED), "attn_output": (_OUTPUT_8X,)},
    "IQ3_M": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "70b"), _row(T.Q4_K)),
        "attn_output": (_OUTPUT_8X, _row(T.Q4_K, "not_falcon")),
        "ffn_down": (_row(T.Q4_K, "first_eighth"), _row(T.Q4_K, "eight_experts", "more_bits")),
    },
    "Q3_K_S": {**_USUAL, "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "70b")), "attn_output": (_OUTPUT_8X,)},
    "Q3_K_M": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "first_two"), _row(T.Q5_K, "70b"), _row(T.Q4_K)),
        "attn_output": (_OUTPUT_8X, _row(T.Q4_K, "not_falcon")),
        "ffn_down": (
            _row(T.Q5_K, "first_sixteenth"),
            _row(T.Q4_K, "not_falcon"),
            _row(T.Q4_K, "more_bits"),
        ),
    },
    "Q3_K_L": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K)),
        "attn_output": (_row(T.Q4_K, "falcon"), _row(T.Q5_K, "not_eight_experts")),
        "ffn_down": (_row(T.Q4_K, "falcon"), _row(T.Q5_K)),
    },
    **{
        name: {
            **_USUAL,
            "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "gqa4")),
            "attn_output": (_OUTPUT_8X,),
            "ffn_down": (_row(T.Q5_K, "no_imatrix", "first_eighth"),),
        }
        for name in ("IQ4_XS", "IQ4_NL")
    },
    "MXFP4_MOE": {
        **{name: (_row(T.MXFP4, "stacked"), _row(T.Q8_0)) for name in ("ffn_up", "ffn_gate", "ffn_down")},
        "*": (_row(T.MXFP4, "stacked", "not_bailingmoe3"), _row(T.Q8_0)),
    },
    "Q4_0": {**_USUAL, "ffn_down": (_row(T.Q4_1, "imatrix", "first_eighth"),)},
    "Q4_1": _USUAL,
    "Q5_0": {**_USUAL, "ffn_down": (_row(T.Q5_1, "imatrix", "first_eighth"),)},
    "Q5_1": _USUAL,
    "Q4_K_S": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q5_K, "first_four"), _row(T.Q5_K, "70b")),
        "attn_output": (_OUTPUT_8X,),
        "ffn_down": (_row(T.Q5_K, "not_falcon", "first_eighth"),),
    },
    "Q4_K_M": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q6_K, "more_bits"), _row(T.Q5_K, "70b")),
        "attn_output": (_OUTPUT_8X,),
        "ffn_down": (
            _row(T.Q6_K, "falcon", "first_sixteenth"),
            _row(T.Q5_K, "falcon", "more_bits"),
            _row(T.Q6_K, "not_falcon", "more_bits"),
        ),
    },
    "Q5_K_S": _USUAL,
    "Q5_K_M": {
        **_USUAL,
        "attn_v": (_EIGHT_EXPERTS, _row(T.Q6_K, "more_bits")),
        "ffn_down": (_row(T.Q6_K, "more_bits"),),
    },
    "Q6_K": _USUAL,
    "Q8_0": {},
}


def more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


CONDITIONS: dict[str, Callable[[Facts, Place], bool]] = {
    "more_bits": lambda facts, at: more_bits(at.i, at.n),
    "first_eighth": lambda facts, at: at.i < at.n // 8,
    "first_eighth_seen": lambda facts, at: at.seen < at.n // 8,
    "first_sixteenth": lambda facts, at: at.i < at.n // 16,
    "middle": lambda facts, at: at.n // 8 <= at.i < 7 * at.n // 8,
    "first_two": lambda facts, at: at.seen < 2,
    "first_four": lambda facts, at: at.seen < 4,
    "stacked": lambda facts, at: at.n_matrices > 1,
    "four_experts": lambda facts, at: facts.n_expert >= 4,
    "eight_experts": lambda facts, at: facts.n_expert == 8,
    "not_eight_experts": lambda facts, at: facts.n_expert != 8,
    "gqa4": lambda facts, at: facts.n_gqa >= 4,
    "70b": lambda facts, at: facts.is_70b,
    "imatrix": lambda facts, at: facts.has_imatrix,
    "no_imatrix": lambda facts, at: not facts.has_imatrix,
    "falcon": lambda facts, at: facts.architecture == "falcon",
    "not_falcon": lambda facts, at: facts.architecture != "falcon",
    "not_bailingmoe3": lambda facts, at: facts.architecture != "bailingmoe3",
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


def choose(file_type: str, default: T, kind: str, facts: Facts, at: Place) -> tuple[T, str]:
    """The type of a tensor of category `kind` at its place, and why."""
    rules = RULES[file_type]
    for row in rules.get(kind, rules.get("*", ())):
        if all(CONDITIONS[condition](facts, at) for condition in row.conditions):
            return row.type, ": ".join(filter(None, (kind, ", ".join(row.conditions))))
    return default, "default"


def output_type(file_type: str, architecture: str, fits: bool) -> tuple[T, str]:
    """For the output matrix, or the token embeddings that double as one."""
    if architecture == "falcon" or not fits:
        return T.Q8_0, "output"
    return OUTPUT.get(file_type, T.Q6_K), "output"
