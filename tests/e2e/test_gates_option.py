"""`--gates PACK`: a combined file of our own, built once, and nothing at all when the pack is not for the base."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import Liquid, failed
from tests.gate_packs import write_base, write_tiny_pack


def combined(liquid: Liquid) -> list[Path]:
    return sorted((liquid.home / "liquid/combined").glob("*"))


def test_the_combined_file_is_built_once_and_kept(tmp_path: Path) -> None:
    liquid, base = Liquid(tmp_path, {}), write_base(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base)
    first = json.loads(liquid("fit", base, "--gates", pack, "--json").stdout)["model"]
    (path,) = combined(liquid)
    assert str(path) == first and path.name.startswith("base+pack.")
    written = path.stat().st_mtime_ns
    assert json.loads(liquid("fit", base, "--gates", "pack.gguf", "--json").stdout)["model"] == first
    assert path.stat().st_mtime_ns == written and len(combined(liquid)) == 1
    assert json.loads(liquid("show", path, "--json").stdout)["architecture"] == "liquid"
    assert [row["source"] for row in json.loads(liquid("list", "--json").stdout)] == ["combined"]
    base.unlink()
    garbage = json.loads(liquid("prune", "-y", "--json").stdout)["files"]
    assert [file["path"] for file in garbage] == [first] and combined(liquid) == []


def test_a_pack_for_another_base_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    liquid, base = Liquid(tmp_path, {}), write_base(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", write_base(tmp_path / "other.gguf", n_ff=96))
    failed(liquid("fit", base, "--gates", pack), 6)
    failed(liquid("fit", base, "--gates", base), 6)
    failed(liquid("fit", base, "--gates", "missing.gguf"), 3, "missing.gguf")
    failed(liquid("fit", f"{base}+gates"), 3, "--gates PACK")
    assert combined(liquid) == []
