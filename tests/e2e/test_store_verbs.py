"""`liquid list`, `cp`, `rm`, `prune` and `verify`, on a machine with two models."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from tests import gguf_bytes
from tests.command import Liquid, failed
from tests.fake_hub import FakeHub, serve

CONTENT = gguf_bytes.llama().build()


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    """One model in the hub's cache, one fetched from an address, and a download broken off yesterday."""
    folder = tmp_path / "hf/hub/models--owner--name"
    digest = hashlib.sha256(CONTENT).hexdigest()
    for path in (folder / "blobs", folder / "snapshots/abc", folder / "refs", tmp_path / "liquid/models"):
        path.mkdir(parents=True)
    (folder / "blobs" / digest).write_bytes(CONTENT)
    (folder / "snapshots/abc/name.Q4_0.gguf").symlink_to(f"../../blobs/{digest}")
    (folder / "refs/main").write_text("abc")
    (folder / f"blobs/{'0' * 64}.incomplete").write_bytes(b"GGUF")
    os.utime(folder / f"blobs/{'0' * 64}.incomplete", (0, 0))
    (tmp_path / "liquid/models/mine.gguf").write_bytes(CONTENT)
    return Liquid(tmp_path, {"HF_HUB_OFFLINE": "1"})


def test_an_empty_machine_says_what_to_do(tmp_path: Path) -> None:
    result = Liquid(tmp_path, {})("list")
    assert (result.returncode, result.stdout) == (0, "") and "liquid pull" in result.stderr
    assert json.loads(Liquid(tmp_path, {})("list", "--json").stdout) == []


def test_list_for_people_scripts_and_pipes(liquid: Liquid) -> None:
    lines = liquid("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "MODIFIED"] and {line.split()[0] for line in lines[1:]} == {
        "owner/name:Q4_0",
        "mine",
    }
    assert liquid("ls", "-q").stdout.split() == [line.split()[0] for line in lines[1:]]
    told = {row["name"]: row for row in json.loads(liquid("list", "--json").stdout)}
    assert told["owner/name:Q4_0"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert told["mine"]["size_bytes"] == len(CONTENT) and told["mine"]["source"] == "local"


def test_list_on_a_terminal_keeps_to_80_columns(liquid: Liquid) -> None:
    long = liquid.home / "liquid/models" / f"{'x' * 150}.gguf"
    long.write_bytes(CONTENT)
    code, shown = liquid.on_terminal("list", NO_COLOR="1")
    assert code == 0 and "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    assert shown.count("x") == 150, "folded, not cut"
    assert "\x1b[1m" in liquid.on_terminal("list")[1]
    assert "\x1b" not in liquid.on_terminal("list", TERM="dumb")[1]


def test_an_alias_is_a_name_like_others(liquid: Liquid) -> None:
    assert liquid("cp", "owner/name:Q4_0", "quick").returncode == 0
    assert json.loads(liquid("show", "quick", "--json").stdout)["architecture"] == "llama"
    assert "quick = owner/name:Q4_0" in liquid("list").stdout
    told = json.loads(liquid("rm", "quick", "--json").stdout)
    assert told == {"removed": ["quick"], "freed_bytes": 0}
    failed(liquid("show", "quick"), 3, "quick")
    failed(liquid("cp", "nothing", "x"), 3, "nothing")
    failed(liquid("cp", "mine", "a/b"), 2, "a/b")


def test_rm_frees_room(liquid: Liquid) -> None:
    told = json.loads(liquid("rm", "owner/name", "mine", "--json").stdout)
    assert set(told["removed"]) == {"owner/name:Q4_0", "mine"} and told["freed_bytes"] == 2 * len(CONTENT)
    assert liquid("list", "-q").stdout == ""
    failed(liquid("rm", "owner/name"), 3, "owner/name")


def test_a_download_that_was_broken_off_is_seen_and_goes(liquid: Liquid) -> None:
    with serve(FakeHub({"someone/Big": {"Big.Q8_0.gguf": CONTENT + bytes(2_000_000)}})) as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        with liquid.start("pull", "someone/Big", **online) as process:
            hub.call_at = (1_000_000, process.kill)
        assert "Big.Q8_0.gguf not fetched to the end" in liquid("list").stderr
        assert "someone/Big" not in liquid("list", "-q").stdout
        (told,) = (row for row in json.loads(liquid("list", "--all", "--json").stdout) if row.get("partial"))
        assert told["name"] == "someone/Big/Big.Q8_0.gguf" and 0 < told["done_bytes"] <= 1_000_000 < told["size_bytes"]
        assert "% of 2.1 MB" in liquid("list", "-a").stdout
        hub.call_at, hub.step_s = (20_000, lambda: None), 0.2
        with liquid.start("pull", "someone/Big", **online) as process:
            while hub.call_at:
                time.sleep(0.02)
            failed(liquid("rm", "someone/Big"), 1, "being fetched")
            assert told["path"] not in liquid("prune", "--dry-run", "--json").stdout
            process.kill()
    assert told["path"] in liquid("prune", "--dry-run", "--json").stdout, "however young it is"
    for name, record in {"a": "[1]", "b": '{"repo_id": 5, "path": 1, "size_bytes": "z", "etag": "../x"}'}.items():
        (liquid.home / f"liquid/partial/{name}.json").write_text(record)
    gone = json.loads(liquid("rm", "someone/Big:Q8_0", "--json").stdout)
    assert gone["freed_bytes"] > 500_000 and not Path(told["path"]).exists()
    failed(liquid("rm", "someone/Big"), 3, "someone/Big")


def test_prune_asks_or_is_told(liquid: Liquid) -> None:
    part = next(liquid.home.rglob("*.incomplete"))
    told = json.loads(liquid("prune", "--dry-run", "--json").stdout)
    assert [file["path"] for file in told["files"]] == [str(part)]
    refused = liquid("prune")
    assert refused.returncode == 2 and "liquid prune -y" in refused.stderr and part.exists()
    assert liquid("prune", "-y").returncode == 0 and not part.exists()
    assert "nothing to delete" in liquid("prune").stderr


def test_verify_finds_a_flipped_bit(liquid: Liquid) -> None:
    assert liquid("verify").returncode == 0
    blob = next((liquid.home / "hf").rglob("blobs/*[!e]"))
    blob.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    result = liquid("verify", "owner/name", "--json")
    assert result.returncode == 6 and [row["ok"] for row in json.loads(result.stdout)] == [False]
    assert "liquid pull" in result.stderr


def test_the_shell_completes_commands_and_models(liquid: Liquid) -> None:
    def completed(*words: str) -> set[str]:
        line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_LIQUID_COMPLETE": "complete_bash"}
        return set(liquid(**line).stdout.split())

    assert completed("liquid", "qu") == {"quantize"}
    assert completed("liquid", "show", "own") == {"owner/name:Q4_0"}
    assert completed("liquid", "run", "-m", "") == {"smollm2-135m", "owner/name:Q4_0", "mine"}
