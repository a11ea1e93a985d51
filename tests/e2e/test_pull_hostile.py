"""`liquid pull` when all goes wrong: the right bytes or one clear sentence, never a wrong file under a right name.

LIQUID_KILLS=100 kills a pull at as many random bytes; a few without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import gguf_bytes
from tests.command import Liquid, failed
from tests.fake_hub import FakeHub, serve

KILLS = int(os.environ.get("LIQUID_KILLS", "3"))
REPO = "someone/Tiny-GGUF"
BIG = gguf_bytes.llama().build() + random.Random(7).randbytes(3_000_000)
OTHER = BIG[:-1] + bytes([BIG[-1] ^ 1])
NAMED = hashlib.sha256(BIG).hexdigest()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({REPO: {"Tiny.Q8_0.gguf": BIG}, "plain": {"m.gguf": BIG}})) as running:
        yield running


@pytest.fixture
def liquid(tmp_path: Path, hub: FakeHub) -> Liquid:
    return Liquid(tmp_path, {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})


def blobs(liquid: Liquid) -> Path:
    return liquid.home / "hf/hub" / f"models--{REPO.replace('/', '--')}" / "blobs"


def part(liquid: Liquid) -> Path:
    return blobs(liquid) / f"{NAMED}.incomplete"


def arrived(liquid: Liquid, ref: str = REPO, **env: str) -> bytes:
    result = liquid("pull", ref, **env)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip()).read_bytes()


def nothing_wrong_is_stored(liquid: Liquid) -> None:
    """No file under a final name holds other bytes than that name promises."""
    for blob in blobs(liquid).glob("*"):
        assert blob.suffix == ".incomplete" or hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    for model in (liquid.home / "liquid/models").glob("*.gguf"):
        assert model.read_bytes() == BIG


def accepted_by_the_hubs_own_tools(liquid: Liquid) -> None:
    for command in (["verify", REPO], ["ls"]):
        hf = [sys.executable, "-m", "huggingface_hub.cli.hf", "cache", *command]
        result = subprocess.run(hf, env=liquid.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert REPO in result.stdout


def test_a_kill_at_any_byte_loses_next_to_nothing(liquid: Liquid, hub: FakeHub) -> None:
    chance = random.Random(KILLS)
    for _ in range(KILLS):
        shutil.rmtree(liquid.home / "hf", ignore_errors=True)
        hub.sent.clear()
        at = chance.randrange(1, len(BIG))
        process = liquid.start("pull", REPO)
        hub.call_at = (at, process.kill)
        process.communicate(timeout=60)
        assert process.returncode == -9
        nothing_wrong_is_stored(liquid)
        have = part(liquid).stat().st_size
        assert at - have <= 400_000, "what had arrived is kept, but for what lay in the sockets"
        hub.sent.clear()
        assert arrived(liquid) == BIG
        assert sum(hub.sent) < 1.1 * (len(BIG) - have) + 1
        assert list(blobs(liquid).iterdir()) == [blobs(liquid) / NAMED]
    accepted_by_the_hubs_own_tools(liquid)


def test_a_flipped_byte_of_the_right_size(liquid: Liquid, hub: FakeHub) -> None:
    hub.flip_at = 1_500_000
    failed(liquid("pull", REPO), 6, "another hash", "run the command again")
    nothing_wrong_is_stored(liquid)
    hub.flip_at = None
    assert arrived(liquid) == BIG


def test_a_flipped_byte_on_the_own_disk(liquid: Liquid, hub: FakeHub) -> None:
    assert arrived(liquid) == BIG
    written = (blobs(liquid) / NAMED).stat().st_mtime_ns
    (blobs(liquid) / NAMED).write_bytes(OTHER)
    os.utime(blobs(liquid) / NAMED, ns=(written, written))
    assert f"liquid pull {REPO}:Q8_0" in liquid("verify").stderr
    assert arrived(liquid) == BIG, "pull mends what verify finds"
    (blobs(liquid) / NAMED).write_bytes(OTHER)
    assert arrived(liquid) == BIG, "and what it finds itself"
    part(liquid).write_bytes(OTHER[-1000:])
    (blobs(liquid) / NAMED).unlink()
    failed(liquid("pull", REPO), 6, "another hash")
    nothing_wrong_is_stored(liquid)
    assert arrived(liquid) == BIG


@pytest.mark.parametrize("ref", [REPO, "plain/m.gguf"])
def test_all_of_it_where_the_rest_was_asked_for(liquid: Liquid, hub: FakeHub, ref: str) -> None:
    hub.break_at, hub.ignore_range = [1_000_000, 2_000_000], True
    assert arrived(liquid, ref if ref == REPO else f"{hub.url}/{ref}") == BIG
    assert len(hub.gets()) == 3


def test_another_rest_than_the_one_asked_for(liquid: Liquid, hub: FakeHub) -> None:
    hub.break_at, hub.shift = [1_000_000], 17
    assert arrived(liquid) == BIG
    assert [span is None for _, span in hub.gets()] == [True, False, True], "it begins again without a Range"


def test_another_version_half_way_from_the_hub(liquid: Liquid, hub: FakeHub) -> None:
    hub.break_at = [1_000_000]
    hub.before_file = lambda: hub.sent and hub.repos[REPO].update({"Tiny.Q8_0.gguf": OTHER})
    failed(liquid("pull", REPO), 6, "another hash")
    nothing_wrong_is_stored(liquid)


def test_another_version_half_way_from_an_address(liquid: Liquid, hub: FakeHub) -> None:
    hub.break_at = [1_000_000]
    hub.before_file = lambda: hub.sent and hub.repos["plain"].update({"m.gguf": OTHER})
    failed(liquid("pull", f"{hub.url}/plain/m.gguf"), 4, "changed on the other side")
    assert len(hub.gets()) == 2
    assert not list((liquid.home / "liquid/models").glob("*.gguf"))
    assert arrived(liquid, f"{hub.url}/plain/m.gguf") == OTHER


def test_an_address_without_any_version_is_never_resumed(liquid: Liquid, hub: FakeHub) -> None:
    hub.has_etags = False
    process = liquid.start("pull", f"{hub.url}/plain/m.gguf")
    hub.call_at = (2_000_000, process.kill)
    process.communicate(timeout=60)
    hub.repos["plain"]["m.gguf"] = OTHER
    hub.asked.clear()
    assert arrived(liquid, f"{hub.url}/plain/m.gguf") == OTHER
    assert [span for _, span in hub.gets()] == [None]


@pytest.mark.parametrize(("status", "headers", "code", "words"), [
    (401, {"X-Error-Code": "RepoNotFound"}, 4, ["HF_TOKEN"]),
    (403, {"X-Error-Code": "GatedRepo"}, 4, ["gated", f"https://huggingface.co/{REPO}", "hf auth login"]),
    (404, {"X-Error-Code": "EntryNotFound"}, 3, ["404", "spelling"]),
    (429, {"Retry-After": "300"}, 4, ["wait 300 seconds"]),
])  # fmt: skip
def test_a_refused_file(liquid: Liquid, hub: FakeHub, status: int, headers: dict, code: int, words: list) -> None:
    hub.refusals = [(status, headers)]
    failed(liquid("pull", REPO), code, *words)
    assert len(hub.gets()) == 1, "asking again would change nothing"
    assert arrived(liquid) == BIG


def test_what_passes_is_waited_for(liquid: Liquid, hub: FakeHub) -> None:
    hub.api_refusals = [(503, {}), (429, {"Retry-After": "1"})]
    hub.refusals = [(500, {}), (429, {"Retry-After": "2"})]
    begun = time.monotonic()
    assert arrived(liquid) == BIG
    assert time.monotonic() - begun >= 3, "Retry-After is heeded"
    assert len(hub.gets()) == 3


def test_a_socket_that_stands_still(liquid: Liquid, hub: FakeHub) -> None:
    hub.stall_at = [1_000_000, 300_000]
    assert arrived(liquid) == BIG
    assert len(hub.gets()) == 3 and all(span for _, span in hub.gets()[1:])


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_size_that_is_not_the_one_that_was_named(liquid: Liquid, hub: FakeHub, lie: int) -> None:
    hub.lied_size = lie
    failed(liquid("pull", REPO), 6, "bytes")
    nothing_wrong_is_stored(liquid)


def test_a_redirect_to_another_host_sees_no_token(liquid: Liquid, hub: FakeHub) -> None:
    with serve(FakeHub({"plain": {"cdn": BIG}})) as cdn:
        hub.redirect = f"{cdn.url}/plain/cdn"
        assert arrived(liquid, HF_TOKEN="hf_secret", LIQUID_TRUSTED_ENDPOINT=hub.url) == BIG
        assert set(hub.tokens) == {"Bearer hf_secret"} and cdn.tokens == [None]


def test_a_disk_that_fills_up_on_the_way(liquid: Liquid, hub: FakeHub) -> None:
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"', str(liquid.home / "hf")]
    (liquid.home / "hf").mkdir()
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be made here")
    code = (
        "import shutil, sys\n"
        "usage = shutil.disk_usage\n"
        "shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 40)\n"
        "from liquidcli.__main__ import main\n"
        f"sys.argv = ['liquid', 'pull', '{REPO}']\nmain()\n"
    )
    command = [*mount, sys.executable, "-c", code]
    result = subprocess.run(command, env=liquid.environment(), capture_output=True, text=True, timeout=60, check=False)
    failed(result, 7, "full", "HF_HOME")


CLIMBING = ("../../../../evil.Q8_0.gguf", "/tmp/evil.Q8_0.gguf", "a/../../evil.Q8_0.gguf", "..\\evil.Q8_0.gguf")


@pytest.mark.parametrize("name", ["\x1b[31mred.Q8_0.gguf", "two\nlines.Q8_0.gguf"])
def test_names_that_would_write_on_the_terminal(liquid: Liquid, hub: FakeHub, name: str) -> None:
    hub.repos[REPO] = {name: BIG}
    failed(liquid("pull", REPO), 6, "control characters")
    assert hub.gets() == []


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_climb_out_of_the_store(liquid: Liquid, hub: FakeHub, name: str) -> None:
    hub.repos[REPO] = {name: BIG}
    failed(liquid("pull", REPO), 6, "leads out of the repository")
    assert not [path for path in liquid.home.rglob("*evil*")] and hub.gets() == []


def test_split_files_and_commits_that_climb(liquid: Liquid, hub: FakeHub) -> None:
    hub.repos[REPO] = {f"../../x-Q8_0-0000{i}-of-00002.gguf": BIG for i in (1, 2)}
    failed(liquid("pull", REPO), 6, "leads out of the repository")
    hub.repos[REPO], hub.commit = {"Tiny.Q8_0.gguf": BIG}, "../../../../evil"
    failed(liquid("pull", REPO), 4, "names no commit")
    assert not list(liquid.home.rglob("*.gguf"))


@pytest.mark.parametrize("ref", [REPO, "plain/m.gguf"])
def test_many_pullers_share_one_download(liquid: Liquid, hub: FakeHub, ref: str) -> None:
    hub.step_s = 0.005
    wanted = ref if ref == REPO else f"{hub.url}/{ref}"
    with ExitStack() as stack:
        pullers = [stack.enter_context(liquid.start("pull", wanted)) for _ in range(3)]
        outputs = {process.communicate(timeout=60)[0] for process in pullers}
    assert len(outputs) == 1 and Path(outputs.pop().strip()).read_bytes() == BIG
    assert len(hub.gets()) == 1


def test_the_second_puller_takes_over_from_one_that_was_killed(liquid: Liquid, hub: FakeHub) -> None:
    hub.step_s = 0.005
    first = liquid.start("pull", REPO)
    hub.call_at = (1_500_000, first.kill)
    with liquid.start("pull", REPO) as second:
        first.communicate(timeout=60)
        out, err = second.communicate(timeout=60)
    assert Path(out.strip()).read_bytes() == BIG, err
    assert sum(hub.sent) < len(BIG) + 600_000


def test_main_may_move_while_its_files_come(liquid: Liquid, hub: FakeHub) -> None:
    """What was planned is what is asked for and linked, whatever main is by then."""
    planned, old = hub.commit, hub.file
    hub.before_file = lambda: setattr(hub, "commit", "f" * 40)
    hub.file = lambda path: old(path.replace(planned, hub.commit))  # type: ignore[method-assign]
    path = Path(json.loads(liquid("pull", REPO, "--json").stdout)["path"])
    assert hub.commit != planned == path.parent.name and path.read_bytes() == BIG
    assert (blobs(liquid).parent / "refs/main").read_text() == planned
