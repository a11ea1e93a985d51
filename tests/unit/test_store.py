"""The store: what is listed, what a name finds, what may be deleted, and what a broken file looks like."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from liquidcli.errors import DiskSpaceError, NotFoundError, UsageError
from liquidcli.files import check_space
from liquidcli.hub import default_model, housekeeping, resolve, store
from liquidcli.hub.home import known_sha256, liquid_home, read_state

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIQUID_HOME", str(tmp_path / "liquid"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def cached(repo: str, commit: str, files: dict[str, bytes], *, main: bool = True, age_s: float = 0) -> Path:
    """What the hub's library leaves behind."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob, link = folder / "blobs" / hashlib.sha256(content).hexdigest(), folder / "snapshots" / commit / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(commit)
    when = time.time() - age_s
    os.utime(folder / "snapshots" / commit, (when, when))
    return folder


def own(name: str, content: bytes, folder: str = "models") -> Path:
    path = liquid_home() / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names() -> set[str]:
    return {model.name for model in store.stored_models()}


def test_names_say_what_to_type_again() -> None:
    files = {"m.Q4_0.gguf": b"4", "m.Q8_0.gguf": b"8", "a/m.F16.gguf": b"a", "b/m.F16.gguf": b"b", "plain.gguf": b"p"}
    cached("x/models", NEW, {**files, "mmproj-m.gguf": b"v", "config.json": b"{}"})
    own("local.gguf", b"l")
    assert names() == {
        "x/models:Q4_0", "x/models:Q8_0", "x/models/a/m.F16.gguf", "x/models/b/m.F16.gguf", "x/models/plain.gguf",
        "local",
    }  # fmt: skip
    for model in store.stored_models():
        assert resolve.resolve_file(model.name, offline=True) == model.path


def test_shards_are_one_model_and_half_a_model_is_none() -> None:
    parts = {f"m-Q4_0-{i:05d}-of-00002.gguf": bytes(i) for i in (1, 2)}
    folder = cached("x/split", NEW, parts)
    (model,) = store.stored_models()
    assert model.name == "x/split:Q4_0" and model.size_bytes == 3 and len(model.paths) == 2
    (folder / "snapshots" / NEW / "m-Q4_0-00002-of-00002.gguf").unlink()
    assert names() == set()


def test_a_stored_version_is_used_whatever_the_hub_has_now() -> None:
    cached("x/m", NEW, {"m.Q8_0.gguf": b"8"})
    cached("x/m", OLD, {"m.Q2_K.gguf": b"2"}, main=False, age_s=100)
    for name, content in {"x/m": b"8", "hf.co/x/m:q8_0": b"8", "x/m:Q2_K": b"2", f"x/m@{OLD}": b"2"}.items():
        assert resolve.resolve_model(name, offline=True).path.read_bytes() == content, name
    with pytest.raises(NotFoundError, match="not on this machine"):
        resolve.resolve_model("x/m:Q4_0", offline=True)


def test_files_come_before_names_and_folders_are_no_files(tmp_path: Path) -> None:
    cached("x/m", NEW, {"m.Q8_0.gguf": b"8"})
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "x/other").mkdir(parents=True)
    (tmp_path / "model.gguf").write_bytes(b"own")
    assert resolve.resolve_model("model.gguf").path.read_bytes() == b"own"
    for folder in ("folder.gguf", "x/other", "."):
        with pytest.raises(UsageError, match="is a folder"):
            resolve.resolve_model(folder)
    with pytest.raises(UsageError, match="device or pipe"):
        resolve.resolve_model(os.devnull)
    for missing in ("nothing.gguf", "./no/model.gguf", "unheard-of", "n" * 5000):
        with pytest.raises(NotFoundError):
            resolve.resolve_model(missing)


def test_what_looks_like_a_reference_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"")
    own("mine.gguf", b"m")
    store.set_alias("quick", "x/m")
    looks = {"hello": True, "mine": True, "quick": True, default_model.ALIAS: True, "x/y": True, "quick+gates": True}
    looks |= {"goodbye": False, "tell me a story": False, "n" * 9999: False, "": False, "quick\n": False}
    assert {text: resolve.looks_like_ref(text) for text in looks} == looks


def test_aliases(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"own")
    cached("x/m", NEW, {"m.Q8_0.gguf": b"8"})
    assert resolve.name_alias("x/m:Q8_0", "eight") == "x/m:Q8_0"
    assert resolve.name_alias("eight", "acht") == "x/m:Q8_0", "an alias of an alias is one of the model"
    assert resolve.name_alias("model.gguf", "mine") == str(tmp_path / "model.gguf")
    assert resolve.resolve_file("acht", offline=True).read_bytes() == b"8"
    assert {"eight", "acht", "mine"} <= set(store.known_names())
    store.remove_alias("eight")
    assert set(store.aliases()) == {"acht", "mine"}
    with pytest.raises(NotFoundError):
        resolve.name_alias("nowhere", "x")
    for bad in ("a/b", "", "-x", "m.gguf", "a b", default_model.ALIAS):
        with pytest.raises(UsageError):
            resolve.name_alias("acht", bad)


def test_broken_state_is_no_state() -> None:
    own("aliases.json", b"{broken", "..")
    (liquid_home()).mkdir(exist_ok=True)
    (liquid_home() / "aliases.json").write_bytes(b"[1]")
    assert store.aliases() == {} and read_state("none.json") == {}


def test_rm_takes_one_quantization_and_keeps_shared_blobs() -> None:
    folder = cached("x/m", NEW, {"m.Q4_0.gguf": b"4" * 10, "m.Q8_0.gguf": b"8" * 20, "copy.Q2_K.gguf": b"8" * 20})
    freed = housekeeping.remove(housekeeping.find("x/m:q8_0"))
    assert names() == {"x/m:Q4_0", "x/m:Q2_K"} and freed == 0, "another file links to the same blob"
    assert housekeeping.remove(housekeeping.find("x/m:Q2_K")) == 20
    assert [blob.read_bytes() for blob in (folder / "blobs").iterdir()] == [b"4" * 10]
    cached("x/m", NEW, {"m.Q8_0.gguf": b"8"})
    housekeeping.remove(housekeeping.find("x/m"))
    assert names() == set()


def test_rm_refuses_what_it_did_not_fetch(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"own")
    with pytest.raises(UsageError, match="file of yours"):
        housekeeping.find("model.gguf")
    with pytest.raises(NotFoundError):
        housekeeping.find("x/unknown")
    assert (tmp_path / "model.gguf").exists()


def test_prune_finds_garbage_and_nothing_else() -> None:
    folder = cached("x/m", OLD, {"m.Q4_0.gguf": b"old", "m.Q2_K.gguf": b"only here"}, main=False, age_s=100)
    cached("x/m", NEW, {"m.Q4_0.gguf": b"new"})
    cached("y/pinned", OLD, {"m.Q4_0.gguf": b"pinned"}, main=False)
    stale, fresh = folder / "blobs/1.incomplete", folder / "blobs/2.incomplete"
    for path in (stale, fresh):
        path.write_bytes(b"part")
    unpacked = own("model.whl", b"wheel", ".fetch-x").parent
    for path in (stale, unpacked):
        os.utime(path, (0, 0))
    base = own("base.gguf", b"base")
    pack, gone = own("pack.gguf", b"pack", "."), base.with_name("gone.gguf")
    now = f"m.0-{hashlib.sha256(b'pack').hexdigest()[:8]}.gguf"
    kept, orphan = own(now, b"k", "combined"), own("orphan.gguf", b"o", "combined")
    outdated, packless = own("m.0-12345678.gguf", b"12", "combined"), own("packless.gguf", b"345", "combined")
    unknown = own("unknown.gguf", b"?", "combined")
    for path, *parts in ((kept, base, pack), (orphan, gone, pack), (outdated, base, pack), (packless, base, gone)):
        store.remember_origin(path, *parts)
    found = housekeeping.garbage()
    old = folder / "snapshots" / OLD / "m.Q4_0.gguf"
    assert {item.path for item in found} == {stale, orphan, old, unpacked, outdated, packless}
    assert housekeeping.prune(found) == len(b"partooldwheel12345") and not unpacked.exists()
    assert names() == {"x/m:Q4_0", "x/m:Q2_K", "y/pinned:Q4_0", "base", kept.stem, unknown.stem} and fresh.exists()
    assert housekeeping.garbage() == []


def test_verify_tells_right_wrong_and_unknown() -> None:
    folder = cached("x/m", NEW, {"good.Q4_0.gguf": b"good", "bad.Q8_0.gguf": b"bad"})
    (folder / "blobs" / hashlib.sha256(b"bad").hexdigest()).write_bytes(b"BAD")
    own("unknown.gguf", b"u")
    store.remember_sha256(own("mine.gguf", b"m"), hashlib.sha256(b"m").hexdigest())
    steps: list[tuple[int, int, str]] = []
    results = housekeeping.verify(store.stored_models(), lambda *step: steps.append(step))
    assert {r.name: r.ok for r in results} == {"x/m:Q4_0": True, "x/m:Q8_0": False, "mine": True, "unknown": None}
    assert all(done == total for done, total, _ in steps)


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    assert known_sha256(path) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr("liquidcli.hub.home.sha256_file", lambda _: "read again")
    assert known_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert known_sha256(path) == "read again"


def test_combined_files_are_built_once_per_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def apply_pack(base: Path, pack: Path, out: Path, progress: object = None) -> dict:
        built.append(out)
        out.write_bytes(base.read_bytes() + pack.read_bytes())
        return {}

    monkeypatch.setattr("liquidcli.gates.apply.apply_pack", apply_pack)
    for name in ("base.gguf", "pack.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    first = resolve.resolve_model("base.gguf", gates="pack.gguf")
    again = resolve.resolve_model("base.gguf", gates="pack.gguf")
    assert first.path == again.path and built == [first.path] and first.path.is_relative_to(liquid_home())
    first.path.write_bytes(b"BASE.ggufpack.gguf")
    assert resolve.resolve_model("base.gguf", gates="pack.gguf").path.read_bytes() == b"base.ggufpack.gguf"
    assert built.pop() == first.path, "bytes that changed are not used"
    (tmp_path / "pack.gguf").write_bytes(b"another pack")
    assert resolve.resolve_model("base.gguf", gates="pack.gguf").path != first.path and len(built) == 2


def test_a_pack_beside_a_model_is_its_gates_and_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_builtin_pack", lambda base: None)
    monkeypatch.setattr("liquidcli.gates.apply.apply_pack", lambda base, pack, out, progress: out.write_bytes(b"both"))
    cached("x/m", NEW, {"m.Q4_0.gguf": b"4", "sub/m.gates.gguf": b"pack", "m-gates-Q8_0.gguf": b"a model"})
    cached("x/plain", NEW, {"m.Q4_0.gguf": b"4"})
    assert names() == {"x/m:Q4_0", "x/m:Q8_0", "x/plain:Q4_0"}
    model = resolve.resolve_model("x/m:Q4_0+gates", offline=True)
    assert model.path.read_bytes() == b"both" and model.pack is not None and model.pack.read_bytes() == b"pack"
    with pytest.raises(NotFoundError, match="no built-in gate pack"):
        resolve.resolve_model("x/plain+gates", offline=True)


def test_a_full_disk_names_what_moves_the_store_not_an_option(tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))

    def apply_pack(base: Path, pack: Path, out: Path, progress: object = None) -> None:
        check_space(out.parent, 98_000_000)

    monkeypatch.setattr("liquidcli.gates.apply.apply_pack", apply_pack)
    for name in ("base.gguf", "pack.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(DiskSpaceError, match=r"1\.0 kB free and this needs 98\.0 MB") as failure:
        resolve.resolve_model("base.gguf", gates="pack.gguf")
    assert "set LIQUID_HOME" in failure.value.hint and "-o" not in failure.value.hint
    with pytest.raises(DiskSpaceError, match="1000 bytes free and this needs 1001") as failure:
        check_space(tmp_path, 1001)
    assert "another folder for the output" in failure.value.hint
