"""`liquid fit`: numbers that follow from the file, and an exit code that says yes or no."""

from __future__ import annotations

import json
from pathlib import Path

from tests import gguf_bytes
from tests.command import Liquid, failed


def test_the_numbers_follow_from_the_file(tmp_path: Path) -> None:
    liquid, path = Liquid(tmp_path, {}), gguf_bytes.llama().write(tmp_path / "m.gguf")
    told = json.loads(liquid("fit", path, "--json").stdout)
    n_layer, n_head_kv, head_dim = 2, 2, 8
    assert told["n_ctx"] == 64 and told["fits"] and told["n_ctx_max"] == 64, "the trained context"
    assert told["kv_bytes"] == 64 * n_layer * n_head_kv * head_dim * 2 * 2  # tokens, K and V, two bytes each
    assert told["weights_bytes"] == path.stat().st_size
    parts = ("weights_bytes", "repacked_bytes", "kv_bytes", "compute_bytes", "program_bytes")
    assert told["total_bytes"] == sum(told[part] for part in parts) <= told["available_bytes"]
    half = json.loads(liquid("fit", path, "-c", "128", "-ctk", "q8_0", "-ctv", "q8_0", "--json").stdout)
    assert half["kv_bytes"] == told["kv_bytes"] * 2 * 8.5 / 16


def test_what_does_not_fit_exits_5(tmp_path: Path) -> None:
    liquid, path = Liquid(tmp_path, {}), gguf_bytes.llama().write(tmp_path / "m.gguf")
    result = liquid("fit", path, "-c", 10**12)
    assert result.returncode == 5 and "fits          no" in result.stdout and "most context  64 tokens" in result.stdout
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    failed(liquid("fit", tmp_path / "broken.gguf"), 6, "broken.gguf")


def test_what_skips_may_drop_keys_and_values(tmp_path: Path) -> None:
    model = gguf_bytes.liquid()
    model.keys["liquid.depth.kv_policy"] = (gguf_bytes.STRING, "drop")
    liquid, path = Liquid(tmp_path, {}), model.write(tmp_path / "m.gguf")
    unknown = json.loads(liquid("fit", path, "--json").stdout)
    assert unknown["kv_bytes"] == unknown["kv_bytes_full"] and unknown["executed_fraction"] is None
    assert "no calibration says" in liquid("fit", path).stdout
    for name, values in (("threshold", [0.25, 0.75]), ("executed_fraction", [0.75, 0.5])):
        model.keys[f"liquid.depth.calibration.{name}"] = (gguf_bytes.ARRAY, (gguf_bytes.FLOAT32, values))
    path = model.write(tmp_path / "calibrated.gguf")
    auto, half, full = (
        json.loads(liquid("fit", path, "--depth", word, "--json").stdout) for word in ("auto", "50%", "full")
    )
    assert (auto["executed_fraction"], half["kv_bytes"], full["kv_bytes"]) == (
        0.625, full["kv_bytes_full"] / 2, unknown["kv_bytes"],
    )  # fmt: skip
    assert auto["kv_bytes_full"] == full["kv_bytes_full"] and "62% of the layers" in liquid("fit", path).stdout
    assert "out of reach" in liquid("fit", path, "--depth", "30%").stderr
    failed(liquid("fit", gguf_bytes.llama().write(tmp_path / "l.gguf"), "--depth", "50%"), 2, "no gates")
    model.keys["liquid.depth.gate_span"] = (gguf_bytes.UINT32, 1)
    failed(liquid("fit", model.write(tmp_path / "odd.gguf"), "--depth", "50%"), 6, "gate_span")
