"""Rotations: every rule in both spellings, and the same angles whether keys say them or a tensor does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from liquidcli.converters.config import Config
from liquidcli.converters.rope import Rope, read_rope, rope_fields, rope_warnings
from liquidcli.converters.rope_factors import rope_tensors
from liquidcli.errors import IntegrityError, LiquidError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


def read(longrope: bool = False, **words: Any) -> Rope:
    return read_rope(Config({"max_position_embeddings": 256, **words}), longrope=longrope)


def keys(rope: Rope) -> dict[str, Any]:
    return {field.key.removeprefix("x.rope."): field.value for field in rope_fields(rope, "x")}


def test_what_both_spellings_say_in_the_order_of_transformers() -> None:
    linear = {"type": "linear", "factor": 2.0}
    assert read(rope_scaling=linear, rope_theta=5.0) == read(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}
    )
    assert read(rope_scaling=linear, rope_parameters={"rope_type": "default"}).kind == "linear"
    outer = read(rope_scaling=YARN, original_max_position_embeddings=128)
    assert (outer.original_context, read(rope_scaling=YARN).original_context) == (128, 64)


def test_yarns_magnitude() -> None:
    own = 0.1 * math.log(4) + 1
    assert read(rope_scaling=YARN).magnitude == pytest.approx(own)
    assert "scaling.attn_factor" not in keys(read(rope_scaling=YARN))
    both = {**YARN, "mscale": 0.5, "mscale_all_dim": 2.0}
    wanted = (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1)
    assert read(rope_scaling=both).magnitude == pytest.approx(wanted)
    assert keys(read(rope_scaling=both))["scaling.attn_factor"] == pytest.approx(wanted / own)
    assert read(rope_scaling={**both, "attention_factor": 3.0}).magnitude == 3.0


@pytest.mark.parametrize("odd", [{"beta_fast": 8.0}, {"beta_slow": 2.0}, {"truncate": False}])
def test_yarn_that_llama_cpp_cannot_compute_becomes_frequencies(odd: dict[str, Any]) -> None:
    rope = read(rope_scaling={**YARN, **odd}).computable(reads_betas=False)
    assert rope.kind == "factors" and rope.needs_factors
    assert keys(rope) == {"freq_base": 10000.0, "scaling.attn_factor": pytest.approx(0.1 * math.log(4) + 1)}
    factors = rope_tensors(rope, 64)["rope_freqs.weight"]
    assert factors.dtype == np.float32 and factors[0] == 1.0 and factors[-1] == 4.0
    assert (np.diff(factors) >= 0).all() and ((factors > 1) & (factors < 4)).sum() >= 5
    by_keys = read(rope_scaling={**YARN, **odd}).computable(reads_betas=True)
    assert by_keys.kind == ("factors" if "truncate" in odd else "yarn")


def test_longrope_has_two_tensors_and_a_magnitude() -> None:
    rope = read(longrope=True, rope_scaling={**LONGROPE, "original_max_position_embeddings": 64})
    made = rope_tensors(rope, 4)
    assert {name: one.tolist() for name, one in made.items()} == {
        "rope_factors_long.weight": [3.0, 4.0], "rope_factors_short.weight": [1.0, 2.0],
    }  # fmt: skip
    assert keys(rope)["scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert keys(rope)["scaling.original_context_length"] == 64 and "scaling.factor" not in keys(rope)
    assert "more than 64 tokens" in rope_warnings(rope)[0]
    with pytest.raises(IntegrityError, match=r"long_factor has 2 values, expected 4"):
        rope_tensors(rope, 8)
    with pytest.raises(LiquidError, match="'longrope' is not supported"):
        read(rope_scaling=LONGROPE)


def test_dynamic_is_plain_within_the_context_and_told() -> None:
    rope = read(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert keys(rope) == {"freq_base": 10000.0} and not rope_tensors(rope, 8)
    assert "past 256 tokens" in rope_warnings(rope)[0]


@pytest.mark.parametrize(
    "section",
    [
        {"rope_type": "proportional"},
        {"rope_type": 3},
        {"rope_type": "linear"},
        {"rope_type": "yarn", "factor": 0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
    ],
)
def test_what_is_no_rotation_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(LiquidError, match=r"rope_type|factor|rope_theta"):
        read(rope_scaling=section)
