"""Which layers a benchmark case gates and skips, what it expects to run, and the figures it derives from rounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from liquidcli.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from cases import Case, Files, gated_layers, skipped_layers
from depth import Outcome, cases_of, parse
from savable import LayerBytes, TokenBytes
from shapes import SHAPES, Gates, Type

BIG = SHAPES["llama-3-8b"]


@pytest.mark.parametrize(
    ("n", "layers"),
    [("0", ()), ("1", (31,)), ("4", (19, 23, 27, 31)), ("16", tuple(range(16, 32))), ("17,20,31", (17, 20, 31))],
)
def test_skipped_layers_are_spread_and_end_with_the_last_gated_one(n, layers):
    assert skipped_layers(BIG, gated_layers(BIG, "upper"), n) == layers


@pytest.mark.parametrize("n", ["17", "-1", "3,20", "x", "31,32"])
def test_layers_that_cannot_be_skipped_are_refused(n):
    with pytest.raises(UsageError):
        skipped_layers(BIG, gated_layers(BIG, "upper"), n)


def test_options_become_cases():
    plain, listed = cases_of(parse(["--shape", "llama-3-8b", "--skip-layers", "4", "--skip-layers", "16,31"]))
    assert (len(plain.skipped), listed.skipped) == (4, (16, 31))
    assert plain.expected_fraction == 28 / 32
    (default,) = cases_of(parse([]))
    assert (default.shape.name, len(default.skipped)) == ("llama-3.2-1b", 4)
    (rated,) = cases_of(parse(["--skip-rate", "0.25", "--gate", "bottleneck", "--shape", "llama-3-8b"]))
    assert rated.expected_fraction == 1 - 16 * 0.25 / 32 and rated.gates.rank == 256
    assert rated.run_rate(rated.expected_fraction) == pytest.approx(dict.fromkeys(range(16, 32), 0.75))


@pytest.mark.parametrize(
    "wrong", [["--adapter", "33"], ["--skip-rate", "1.5"], ["--rounds", "0"], ["--clock", "cpu", "--threads", "2"]]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        parse(wrong)


def test_saved_over_savable_is_taken_round_by_round():
    layers = (LayerBytes(always=10, run=80, norm=10), LayerBytes(always=10, run=80, norm=10, gate=5, adapter=20))
    found = TokenBytes(shared=100, layers=layers)
    case = Case(SHAPES["tiny"], Gates((1,), adapter=32), skipped=(1,))
    assert found.full == 300 and found.at({1: 0.0}) == 245  # 100 + 100 + 10 K,V + 5 gate + 20 adapter + 10 norm
    ms = {"full": [10.0, 20.0, 10.0], "skip": [9.0, 18.0, 5.0], "stock": [10.0, 10.0, 20.0]}
    figures = Outcome(case, found, [0.875] * 3, ms).as_json()
    assert figures["savable"] == pytest.approx(55 / 300)
    assert figures["saved"] == pytest.approx(0.1)
    assert figures["saved_over_savable"] == pytest.approx(0.1 / (55 / 300))
    assert figures["full_over_stock"] == 1.0
    assert figures["ms_per_token"]["full"] == 10.0


def test_different_models_have_different_file_names(tmp_path):
    def path(**parts) -> Path:
        return Files(tmp_path, SHAPES["tiny"], Type.Q4_0, Type.Q6_K, 1).path(Gates(**{"layers": (1, 2), **parts}))

    names = {path(), path(layers=(1, 3)), path(kind="bottleneck", rank=8), path(adapter=32), path(scaled=True)}
    assert len(names) == 5
