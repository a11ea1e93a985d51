"""The curve of `liquid perplexity`: depths that meet, depths named twice, and what is drawn without a comparison."""

from __future__ import annotations

import pytest

from liquidcli.cli.perplexity_plot import panels, points, write_plot


def result(mode: str, share: float, ppl: float, **more: float) -> dict:
    return {"depth": {"mode": mode, "executed_fraction": share}, "ppl": ppl, "tokens_per_second": 40.0, **more}


FULL, LOW = result("full", 1.0, 12.5), result("30%", 0.437, 18.25)


def test_depths_that_meet_are_one_point_with_both_names(tmp_path):
    met = [FULL, LOW, result("20%", 0.437, 18.25), FULL]
    assert points(met, "ppl") == [(pytest.approx(43.7), 18.25, "30%, 20%"), (100.0, 12.5, "full")]
    write_plot(tmp_path / "curve.png", met, "met")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_comparison_perplexity_itself_is_drawn():
    assert panels([FULL, LOW]) == ["ppl", "tokens_per_second"]
    compared = [{**each, "ppl_ratio_to_full": each["ppl"] / 12.5} for each in (FULL, LOW)]
    assert panels(compared) == ["ppl_ratio_to_full", "tokens_per_second"]
    assert panels([{**each, "kld_mean": 0.1} for each in compared]) == [
        "ppl_ratio_to_full", "kld_mean", "tokens_per_second",
    ]  # fmt: skip
