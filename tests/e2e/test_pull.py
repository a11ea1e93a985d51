"""`liquid pull` against a hub that behaves and one that does not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gguf_bytes
from tests.command import Liquid, failed
from tests.fake_hub import COMMIT, FakeHub, serve

REPO = "someone/Tiny-GGUF"
MODEL = gguf_bytes.llama().build()
BIG = MODEL + bytes(3_000_000)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {"Tiny.Q4_K_M.gguf": MODEL, "Tiny.Q8_0.gguf": BIG, "mmproj-Tiny.F16.gguf": b"GGUF", "README.md": b"# Tiny"}
    with serve(FakeHub({REPO: files})) as running:
        yield running


@pytest.fixture
def liquid(tmp_path: Path, hub: FakeHub) -> Liquid:
    return Liquid(tmp_path, {"HF_ENDPOINT": hub.url})


def blob(liquid: Liquid, content: bytes) -> Path:
    blobs = liquid.home / "hf/hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    return blobs / hashlib.sha256(content).hexdigest()


def test_stdout_is_the_path_and_the_cache_has_the_hubs_layout(liquid: Liquid) -> None:
    result = liquid("pull", REPO)
    path = Path(result.stdout.strip())
    assert result.returncode == 0 and result.stdout.count("\n") == 1 and result.stderr == ""
    assert path.read_bytes() == MODEL
    assert path.parent.name == COMMIT and path.is_symlink() and path.resolve() == blob(liquid, MODEL)
    assert (blob(liquid, MODEL).parents[1] / "refs/main").read_text() == COMMIT
    assert not list(liquid.home.rglob("*.incomplete"))


def test_a_tag_chooses_and_json_tells(liquid: Liquid) -> None:
    result = liquid("pull", f"hf.co/{REPO}:q8_0", "--json")
    told = json.loads(result.stdout)
    assert Path(told["path"]).read_bytes() == BIG and told["size_bytes"] == len(BIG)


def test_a_second_pull_fetches_nothing(liquid: Liquid, hub: FakeHub) -> None:
    first = liquid("pull", REPO)
    hub.asked.clear()
    second = liquid("pull", REPO)
    assert second.stdout == first.stdout and hub.gets() == []


def test_a_newer_version_comes_by_pull_alone_and_is_told(liquid: Liquid, hub: FakeHub) -> None:
    old = liquid("pull", REPO).stdout
    hub.commit, hub.repos[REPO]["Tiny.Q4_K_M.gguf"] = "f" * 40, BIG
    shown = liquid("show", REPO, "--json")
    assert json.loads(shown.stdout)["size_bytes"] == len(MODEL), "no surprise update"
    new = liquid("pull", REPO)
    assert new.stdout != old and Path(new.stdout.strip()).read_bytes() == BIG and "newer version" in new.stderr
    assert [row["path"] for row in json.loads(liquid("prune", "--dry-run", "--json").stdout)["files"]] == [old.strip()]


def test_dry_run_fetches_nothing(liquid: Liquid, hub: FakeHub) -> None:
    told = json.loads(liquid("pull", REPO, "--dry-run", "--json").stdout)
    assert told["missing_bytes"] == told["size_bytes"] == len(MODEL)
    assert told["files"][0]["sha256"] == hashlib.sha256(MODEL).hexdigest()
    assert (told["architecture"], told["fits"]) == ("llama", True) and told["memory_bytes"] > len(MODEL)
    assert {quant["tag"]: quant["size_bytes"] for quant in told["quants"]} == {"Q4_K_M": len(MODEL), "Q8_0": len(BIG)}
    assert [span for _, span in hub.gets()] == [f"bytes=0-{len(MODEL) - 1}"], "the header alone"
    assert not (liquid.home / "hf").exists()
    shown = liquid("pull", REPO, "--dry-run")
    assert "Q8_0" in shown.stdout and "FITS" in shown.stdout and "to fetch" in shown.stderr
    hub.repos[REPO]["Tiny.Q4_K_M.gguf"] = b"no GGUF"
    told = json.loads(liquid("pull", REPO, "--dry-run", "--json").stdout)
    assert told["missing_bytes"] == 7 and "fits" not in told


def test_habits_of_other_tools(liquid: Liquid, hub: FakeHub) -> None:
    path = liquid("pull", REPO, "--revision", COMMIT).stdout
    assert COMMIT in path and liquid("pull", REPO, "--offline").stdout == path
    assert liquid("pull", REPO, HF_HUB_OFFLINE="1").stdout == path
    failed(liquid("pull", f"{REPO}:Q8_0", "--offline"), 3, f"liquid pull {REPO}:Q8_0")
    folder = Path(liquid("pull", REPO, "--include", "*.md", "--include", "*Q8*").stdout.strip())
    assert (folder / "README.md").read_bytes() == b"# Tiny" and (folder / "Tiny.Q8_0.gguf").read_bytes() == BIG
    failed(liquid("pull", "--include", "*.md"), 2, "need a repository")
    failed(liquid("pull", f"{hub.url}/plain/m.gguf", "--revision", "x"), 2, "--revision does not go")
    failed(liquid("pull", REPO, "--include", "*.xyz"), 3, "no file like *.xyz")


def test_a_big_model_that_does_not_fit_is_told_before_it_comes(liquid: Liquid, hub: FakeHub) -> None:
    code = (
        "import sys\n"
        "from liquidcli.__main__ import main\n"
        "import importlib, liquidcli.runtime.fit\n"
        "importlib.import_module('liquidcli.cli.pull')._ASKED_FROM_BYTES = 1_000_000\n"
        "liquidcli.runtime.fit.available_bytes = lambda: 2_000_000\n"
        "sys.argv = ['liquid', *sys.argv[1:]]\nmain()\n"
    )
    for ref, is_told in ((REPO, False), (f"{REPO}:Q8_0", True)):
        command = [*liquid.command()[:1], "-c", code, "pull", ref]
        result = subprocess.run(command, env=liquid.environment(), capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert ("needs about 66.1 MB of memory, 2.0 MB are available" in result.stderr) is is_told, result.stderr
    assert [span for _, span in hub.gets()] == [None, "bytes=0-1048575", None]


def test_names_in_capitals_are_models_too(liquid: Liquid, hub: FakeHub) -> None:
    hub.repos["x/case"] = {"M.GGUF": MODEL}
    assert liquid("pull", "x/case").returncode == 0 and "x/case/M.GGUF" in liquid("list", "-q").stdout
    assert json.loads(liquid("show", "x/case/M.GGUF", "--json").stdout)["architecture"] == "llama"


def test_shards_come_together(liquid: Liquid, hub: FakeHub) -> None:
    parts = {f"big/Big-Q4_0-{i:05d}-of-00002.gguf": b"GGUF part %d" % i for i in (1, 2)}
    hub.repos["someone/Big"] = dict(parts)
    path = Path(liquid("pull", "someone/Big:Q4_0").stdout.strip())
    assert path.name.endswith("-00001-of-00002.gguf")
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {k.split("/")[1]: v for k, v in parts.items()}
    del hub.repos["someone/Big"]["big/Big-Q4_0-00002-of-00002.gguf"]
    failed(liquid("pull", "someone/Big:Q4_0"), 3, "00002-of-00002.gguf")


def test_an_interrupted_pull_goes_on_where_it_stopped(liquid: Liquid, hub: FakeHub) -> None:
    hub.step_s = 0.02
    process = liquid.start("pull", f"{REPO}:Q8_0")
    part = blob(liquid, BIG).with_name(blob(liquid, BIG).name + ".incomplete")
    wait_for(lambda: part.exists() and part.stat().st_size > 200_000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    have = part.stat().st_size
    hub.step_s = 0
    hub.asked.clear()
    result = liquid("pull", f"{REPO}:Q8_0")
    assert Path(result.stdout.strip()).read_bytes() == BIG
    assert [span for _, span in hub.gets()] == [f"bytes={have}-"]


def test_a_killed_pull_goes_on_too(liquid: Liquid, hub: FakeHub) -> None:
    hub.step_s = 0.02
    process = liquid.start("pull", f"{REPO}:Q8_0")
    part = blob(liquid, BIG).with_name(blob(liquid, BIG).name + ".incomplete")
    wait_for(lambda: part.exists() and part.stat().st_size > 200_000)
    process.kill()
    process.communicate(timeout=30)
    hub.step_s = 0
    hub.ignore_range = True  # a server that sends everything again
    assert Path(liquid("pull", f"{REPO}:Q8_0").stdout.strip()).read_bytes() == BIG


def test_broken_connections_are_taken_up_again(liquid: Liquid, hub: FakeHub) -> None:
    hub.break_at = [1_000_000, 500_000]
    result = liquid("pull", f"{REPO}:Q8_0")
    assert result.returncode == 0 and Path(result.stdout.strip()).read_bytes() == BIG
    starts = [int(span.removeprefix("bytes=").rstrip("-")) if span else 0 for _, span in hub.gets()]
    assert len(starts) == 3 and 0 < starts[1] <= 1_000_000 and starts[1] < starts[2] <= 1_500_000


def test_a_flipped_byte_is_found_and_thrown_away(liquid: Liquid, hub: FakeHub) -> None:
    hub.flip_at = 1000
    failed(liquid("pull", REPO), 6, "another hash")
    assert [path for path in (liquid.home / "hf").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    hub.flip_at = None
    assert liquid("pull", REPO).returncode == 0


@pytest.mark.parametrize(("status", "headers", "code", "word"), [
    (401, {}, 4, "HF_TOKEN"),
    (403, {"X-Error-Code": "GatedRepo"}, 4, "gated"),
    (404, {"X-Error-Code": "RepoNotFound"}, 3, "spelling"),
    (404, {"X-Error-Code": "RevisionNotFound"}, 3, "spelling"),
    (429, {}, 4, "429"),
    (500, {}, 4, "500"),
])  # fmt: skip
def test_refusals_are_one_sentence(
    liquid: Liquid, hub: FakeHub, status: int, headers: dict, code: int, word: str
) -> None:
    hub.status, hub.headers = status, headers
    failed(liquid("pull", REPO), code, REPO, word)


def test_what_is_not_there(liquid: Liquid, hub: FakeHub) -> None:
    failed(liquid("pull", f"{REPO}:Q2_K"), 3, "Q2_K", "Q4_K_M, Q8_0", f"liquid pull {REPO}:Q4_K_M")
    failed(liquid("pull", f"{REPO}@nowhere"), 3, f"no {REPO}@nowhere")
    failed(liquid("pull", ""), 2, "empty name")
    both = liquid("pull", REPO, "someone/nothing")
    assert both.returncode == 3 and Path(both.stdout.strip()).read_bytes() == MODEL, "what came is told"
    failed(liquid("pull", f"hf://{REPO}/other.gguf"), 3, "other.gguf")
    hub.repos["someone/checkpoint"] = {"config.json": b"{}"}
    failed(liquid("pull", "someone/checkpoint"), 3, "liquid convert someone/checkpoint")


def test_no_hub_at_all(liquid: Liquid) -> None:
    failed(liquid("pull", REPO, HF_ENDPOINT="http://127.0.0.1:9"), 4, REPO)
    failed(liquid("pull", REPO, HF_ENDPOINT="http://name.invalid"), 4, REPO)
    failed(liquid("pull", REPO, HF_HUB_OFFLINE="1"), 4, "HF_HUB_OFFLINE")


def test_the_token_goes_neither_to_a_mirror_nor_to_an_address(liquid: Liquid, hub: FakeHub) -> None:
    hub.repos["plain"] = {"some/model.gguf": MODEL}
    assert liquid("pull", REPO, HF_TOKEN="hf_secret").returncode == 0
    assert hub.tokens and set(hub.tokens) == {None}
    hub.status = 401
    failed(liquid("pull", REPO, HF_TOKEN="hf_secret"), 4, f"{hub.url} is yours, set LIQUID_TRUSTED_ENDPOINT")
    hub.status = 0
    hub.tokens.clear()
    own = {"HF_TOKEN": "hf_secret", "LIQUID_TRUSTED_ENDPOINT": hub.url}
    assert liquid("pull", f"{REPO}:Q8_0", **own).returncode == 0
    assert set(hub.tokens) == {"Bearer hf_secret"}
    hub.tokens.clear()
    failed(liquid("pull", REPO, **{**own, "HF_TOKEN": "\u0142"}), 2, "token", "hf auth login")
    hub.tokens.clear()
    result = liquid("pull", f"{hub.url}/plain/some/model.gguf", **own)
    assert Path(result.stdout.strip()) == liquid.home / "liquid/models/model.gguf"
    assert set(hub.tokens) == {None}


def test_an_address_is_fetched_once_resumed_and_checked(liquid: Liquid, hub: FakeHub) -> None:
    hub.repos["plain"] = {"m.gguf": BIG, "page.gguf": b"<html>"}
    address = f"{hub.url}/plain/m.gguf"
    process = liquid.start("pull", address)
    hub.step_s = 0.02
    wait_for(lambda: any(p.stat().st_size > 100_000 for p in (liquid.home / "liquid").glob("models/.*.incomplete")))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    hub.step_s = 0
    hub.asked.clear()
    assert Path(liquid("pull", address).stdout.strip()).read_bytes() == BIG
    assert [span is not None for _, span in hub.gets()] == [True]
    hub.asked.clear()
    assert liquid("pull", address).returncode == 0 and hub.gets() == []
    failed(liquid("pull", f"{hub.url}/plain/page.gguf"), 6, "no GGUF")
    failed(liquid("pull", "http://example.org/model.gguf"), 2, "https")
    assert json.loads(liquid("list", "--json").stdout)[0]["name"] == "m"


def test_an_address_never_gives_what_another_gave(liquid: Liquid, hub: FakeHub) -> None:
    other = BIG[:-1] + bytes([BIG[-1] ^ 1])
    hub.repos["plain"] = {"a/m.gguf": BIG, "b/m.gguf": other}
    first, second = f"{hub.url}/plain/a/m.gguf", f"{hub.url}/plain/b/m.gguf"
    content = lambda address: Path(liquid("pull", address).stdout.strip()).read_bytes()  # noqa: E731
    assert content(first) == BIG and liquid("rm", "m").returncode == 0
    assert content(second) == other and content(first) == BIG and content(second) == other
    for one in json.loads(liquid("list", "--json").stdout):
        assert liquid("rm", one["name"]).returncode == 0
    both = [liquid.start("pull", address) for address in (first, second)]
    for process, expected in zip(both, (BIG, other), strict=True):
        assert Path(process.communicate(timeout=60)[0].strip()).read_bytes() == expected
    assert (content(first), content(second)) == (BIG, other)


def test_a_full_disk_is_seen_before_a_byte_is_fetched(liquid: Liquid, hub: FakeHub) -> None:
    code = (
        "import shutil, sys\n"
        "usage = shutil.disk_usage\n"
        "shutil.disk_usage = lambda path: usage(path)._replace(free=1000)\n"
        "from liquidcli.__main__ import main\n"
        f"sys.argv = ['liquid', 'pull', '{REPO}']\nmain()\n"
    )
    command = [*liquid.command()[:1], "-c", code]
    result = subprocess.run(command, env=liquid.environment(), capture_output=True, text=True, timeout=60, check=False)
    failed(result, 7, "1.0 kB free", "set HF_HOME")
    assert " -o" not in result.stderr
    assert hub.gets() == []


def test_two_pulls_at_once_fetch_once(liquid: Liquid, hub: FakeHub) -> None:
    hub.step_s = 0.005
    both = [liquid.start("pull", f"{REPO}:Q8_0") for _ in range(2)]
    outputs = {process.communicate(timeout=60)[0] for process in both}
    assert len(outputs) == 1 and Path(outputs.pop().strip()).read_bytes() == BIG
    assert len(hub.gets()) == 1


def wait_for(condition, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_progress_is_drawn_on_a_terminal_only(liquid: Liquid, hub: FakeHub) -> None:
    hub.step_s = 0.005
    code, shown = liquid.on_terminal("pull", f"{REPO}:Q8_0")
    assert code == 0 and "Tiny.Q8_0.gguf" in shown and "MB" in shown
    assert shown.rstrip().splitlines()[-1].strip().endswith(os.fsdecode("Tiny.Q8_0.gguf"))


def test_without_a_connection_it_is_said_in_words(liquid: Liquid) -> None:
    result = liquid("pull", "someone/model", HF_ENDPOINT="http://127.0.0.1:9")
    failed(result, 4, "no connection (connection refused)", "hint: liquid list")
    assert "Errno" not in result.stderr
