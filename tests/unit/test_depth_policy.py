"""What a person may ask of depth, and what comes of it for a model."""

from __future__ import annotations

import numpy as np
import pytest

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.runtime.depth import Calibration, DepthPolicy, DepthStats, LayerMap, Span

CALIBRATION = Calibration((0.2, 0.5, 0.8), (0.9, 0.7, 0.4))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("auto", "auto", 0.0),
        ("FULL", "full", 0.0),
        ("75%", "share", 0.75),
        ("62.5 %", "share", 0.625),
        ("tau=0.3", "threshold", 0.3),
        ("tau = .3", "threshold", 0.3),
        ("tau=1", "threshold", 1.0),
    ],
)
def test_the_four_forms(text: str, kind: str, value: float) -> None:
    policy = DepthPolicy.parse(text)
    assert (policy.kind, policy.value) == (kind, pytest.approx(value))
    assert DepthPolicy.parse(str(policy)) == policy


@pytest.mark.parametrize("number", ["0.8", "80", "1", ".5"])
def test_a_bare_number_is_refused_with_both_readings(number: str) -> None:
    with pytest.raises(UsageError) as failure:
        DepthPolicy.parse(number)
    assert f"{float(number) * (100 if float(number) <= 1 else 1):g}%" in failure.value.hint
    assert "tau=0.NN" in failure.value.hint


@pytest.mark.parametrize("text", ["", "deep", "0%", "101%", "tau=1.5", "tau=-0.1", "tau", "%", "tau=0.5x", "-5"])
def test_everything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        DepthPolicy.parse(text)


@pytest.mark.parametrize(("share", "tau"), [(90, 0.2), (80, 0.35), (70, 0.5), (55, 0.65), (40, 0.8)])
def test_a_share_is_interpolated_between_measured_pairs(share: int, tau: float) -> None:
    setting = DepthPolicy.parse(f"{share}%").resolve(CALIBRATION)
    assert (setting.mode, setting.threshold, setting.note) == ("threshold", pytest.approx(tau), "")


@pytest.mark.parametrize(("share", "tau"), [(95, 0.2), (10, 0.8)])
def test_a_share_outside_is_clamped_and_says_so(share: int, tau: float) -> None:
    setting = DepthPolicy.parse(f"{share}%").resolve(CALIBRATION)
    assert setting.threshold == pytest.approx(tau)
    assert f"{share}% is out of reach" in setting.note and "40% to 90%" in setting.note


def test_what_is_reached_at_least_is_told_to_a_tenth_and_taken_as_told():
    calibration = Calibration((0.2, 0.9), (0.99962, 0.43678))
    assert "runs 43.7% to 100% of its layers; 43.7% is used" in DepthPolicy.parse("30%").resolve(calibration).note
    for told in ("43.7%", "100%"):
        assert DepthPolicy.parse(told).resolve(calibration).note == ""


def test_a_file_s_keys_tell_what_becomes_of_a_depth_before_it_is_loaded():
    keys = {"gate_span": [0, 1], "threshold": 0.5, "ffn_scaled_by_gate": True}
    keys |= {"calibration.threshold": [0.2, 0.5], "calibration.executed_fraction": [0.9, 0.6]}
    metadata = {f"liquid.depth.{name}": value for name, value in keys.items()}
    setting = DepthPolicy.parse("30%").resolve_for(metadata)
    assert setting.threshold == 0.5 and "60% is used" in setting.note and "untrained" not in setting.note
    assert "untrained" in DepthPolicy.parse("90%").resolve_for(metadata).note
    with pytest.raises(UsageError, match="no gates"):
        DepthPolicy.parse("30%").resolve_for({"general.architecture": "llama"})


def test_calibration_of_one_pair_and_of_equal_fractions() -> None:
    assert Calibration((0.5,), (0.8,)).threshold_for(0.3) == 0.5
    assert 0.1 <= Calibration((0.1, 0.2, 0.9), (0.8, 0.8, 0.4)).threshold_for(0.8) <= 0.2
    plateau = Calibration((0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 0.9, 0.9, 0.9, 0.6))
    for share, threshold in ((0.95, 0.2), (0.75, 0.8), (0.6, 0.9)):
        assert plateau.threshold_for(share) == pytest.approx(threshold)
        assert plateau.share_at(threshold) == pytest.approx(share)


@pytest.mark.parametrize("text", ["75%", "tau=0.4"])
def test_without_gates_only_auto_and_full_have_a_meaning(text: str) -> None:
    with pytest.raises(UsageError, match="no gates"):
        DepthPolicy.parse(text).resolve(None, gated=False)
    assert DepthPolicy.parse("full").resolve(None, gated=False).mode == "full"
    assert DepthPolicy.parse("auto").resolve(None, gated=False).mode == "auto"


def test_a_share_needs_a_calibration_and_a_threshold_does_not() -> None:
    with pytest.raises(UsageError, match="calibration"):
        DepthPolicy.parse("75%").resolve(None)
    assert DepthPolicy.parse("tau=0.4").resolve(None).threshold == pytest.approx(0.4)


def test_other_thresholds_of_scaled_files_are_reported_as_untrained() -> None:
    assert "untrained" in DepthPolicy.parse("tau=0.4").resolve(None, trained_at=0.5, scaled=True).note
    assert DepthPolicy.parse("tau=0.5").resolve(None, trained_at=0.5, scaled=True).note == ""
    assert DepthPolicy.parse("tau=0.4").resolve(None, trained_at=0.5, scaled=False).note == ""


def test_calibration_comes_from_two_keys_or_none() -> None:
    prefix = "liquid.depth.calibration"
    both = {f"{prefix}.threshold": [0.1, 0.9], f"{prefix}.executed_fraction": [1.0, 0.3]}
    assert Calibration.from_metadata(both) == Calibration((0.1, 0.9), (1.0, 0.3))
    assert Calibration.from_metadata({}) is None


@pytest.mark.parametrize(
    "columns", [([0.1], [0.2, 0.3]), ([], []), ([0.1], None), ([float("nan")], [0.5]), ([0.1], [2.0]), ("ab", "cd")]
)
def test_a_calibration_that_makes_no_sense_is_refused(columns: tuple) -> None:
    names = ("threshold", "executed_fraction")
    metadata = {f"liquid.depth.calibration.{n}": c for n, c in zip(names, columns, strict=True) if c is not None}
    with pytest.raises(IntegrityError):
        Calibration.from_metadata(metadata)


def test_decisions_of_spans_become_layers() -> None:
    gates = [Span(0, 1), Span(1, 3), Span(4, 1, "ffn"), Span(4, 2, is_exit=True)]
    layers = LayerMap(6, gates).layers(np.array([[0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool))
    assert layers.astype(int).tolist() == [[0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_statistics_count_layers_per_token() -> None:
    before = DepthStats(10, n_tokens=2, n_layer_runs=20)
    after = DepthStats(10, n_tokens=6, n_layer_runs=50)
    assert (after - before).as_json("auto") == {
        "mode": "auto", "layers_total": 10, "layers_run_mean": 7.5, "executed_fraction": 0.75,
    }  # fmt: skip
    assert (before + before).n_layer_runs == 40
    assert DepthStats(10).as_json("full")["executed_fraction"] == 1.0


def test_experts_are_counted_per_token_and_layer() -> None:
    stats = DepthStats(4, n_tokens=10, n_layer_runs=40, n_expert=8, n_moe_layer=2, n_expert_hits=30)
    assert stats.as_json()["experts"] == {"per_layer": 8, "used_mean": 1.5}
    assert "experts" not in DepthStats(4, n_tokens=1, n_layer_runs=4).as_json()
