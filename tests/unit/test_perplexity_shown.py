"""The curve's table: it fits a terminal, whatever the figures are."""

from __future__ import annotations

import pytest

from liquidcli.cli.perplexity_shown import add_ratios, table


def result(depth: str, ppl: float, tokens_per_second: float) -> dict:
    used = {"mode": depth, "layers_run_mean": 29.5, "layers_total": 30, "executed_fraction": 1.0}
    base = {"base_ppl": ppl, "base_ppl_error": ppl / 20, "kld_mean": 12.34567, "kld_p99": 123.45678, "same_top_p": 1.0}
    return {"depth": used, "ppl": ppl, "ppl_error": ppl / 20, "tokens_per_second": tokens_per_second, **base}


@pytest.mark.parametrize("ppl", [9.98765, 22.95, 999.99999, 1112.1657, 99999.99999, 1234567.891])
@pytest.mark.parametrize("speed", [9.99, 640.0, 12817.4, 123456.7])
def test_the_widest_curve_fits_eighty_columns(ppl, speed):
    results = [result("full", ppl, speed), result("tau=0.45", ppl * 1.5, speed)]
    add_ratios(results)
    columns, rows = table(results)
    widths = [max(map(len, column)) for column in zip([name.lstrip(">") for name in columns], *rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    shown = dict(zip(columns, rows[1], strict=True))
    assert float(shown[">PPL"]) == pytest.approx(ppl, rel=1e-4)
    assert float(shown[">t/s"]) == pytest.approx(speed, rel=1e-2)
    assert rows[2][columns.index(">ratio")] == "1.5000"
