"""A checkpoint from the hub for the converters: what is fetched, what is not, and what is not believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.utils import close_session

from liquidcli.errors import IntegrityError, NotFoundError, UsageError
from liquidcli.hub.pull import pull_snapshot
from tests.fake_hub import COMMIT, FakeHub, serve

REPO = "someone/checkpoint"
TEXTS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "x.jinja": b"{{ x }}",
    "README.md": b"# x",
}
TEMPLATE = {"additional_chat_templates/tool_use.jinja": b"{{ tools }}"}
WEIGHTS = {"model-00001-of-00002.safetensors": b"one" * 50_000, "model-00002-of-00002.safetensors": b"two" * 50_000}
OTHERS = {
    "pytorch_model.bin": b"\x80\x04pickle", "consolidated.safetensors": b"again", "onnx/model.onnx": b"o",
    "original/config.json": b"{}", "model.gguf": b"GGUF", "modeling.py": b"raise SystemExit",
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve(FakeHub({REPO: {**TEXTS, **TEMPLATE, **WEIGHTS, **OTHERS}})) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
    close_session()


def test_texts_and_safetensors_and_nothing_that_could_run(hub: FakeHub) -> None:
    steps: list[tuple[int, int, str]] = []
    folder = pull_snapshot(REPO, progress=lambda *step: steps.append(step))
    wanted, found = {**TEXTS, **TEMPLATE, **WEIGHTS}, [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in found} == wanted
    assert folder.name == COMMIT and {what for _, _, what in steps} == {f"{REPO} (8 files)"}
    done, total, _ = steps[-1]
    assert done == total == sum(map(len, wanted.values()))
    hub.asked.clear()
    assert pull_snapshot(f"hf.co/{REPO}") == folder and hub.gets() == []


def test_the_hubs_own_tools_accept_what_was_stored(hub: FakeHub) -> None:
    pull_snapshot(REPO)
    checked = HfApi().verify_repo_checksums(REPO)
    assert (checked.checked_count, checked.mismatches, checked.extra_paths) == (8, [], [])
    (repository,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert repository.repo_id == REPO and [*repository.refs] == ["main"] and repository.nb_files == 8


def test_a_revision_and_patterns(hub: FakeHub) -> None:
    folder = pull_snapshot(REPO, revision=COMMIT, patterns=("config.json",))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    with pytest.raises(NotFoundError):
        pull_snapshot(REPO, revision="nowhere")
    with pytest.raises(NotFoundError, match="no file like"):
        pull_snapshot(REPO, patterns=("*.xyz",))


@pytest.mark.parametrize("flip_at", [3, 100])
def test_small_and_large_files_are_both_checked(hub: FakeHub, flip_at: int) -> None:
    hub.repos[REPO] = {"config.json": b"{}" * 100, **WEIGHTS}
    hub.flip_at = flip_at
    with pytest.raises(IntegrityError, match="another hash"):
        pull_snapshot(REPO)
    assert {path.suffix for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*")} <= {".incomplete"}


def test_what_is_no_checkpoint(hub: FakeHub) -> None:
    hub.repos["someone/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    with pytest.raises(NotFoundError, match="no safetensors"):
        pull_snapshot("someone/pickled")
    with pytest.raises(UsageError):
        pull_snapshot("./folder")
