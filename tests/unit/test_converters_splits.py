"""A model in several files: upstream's names, keys and rule; joined they are the model; all of them or none."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters import splits
from liquidcli.errors import IntegrityError, UsageError
from liquidcli.gguf_file import GGUFFile, open_gguf
from tests.hf_folders import llama_tensors, write_llama

LIMIT = 30_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m")


def same(a: GGUFFile, b: GGUFFile) -> None:
    assert list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        assert a.raw(name).tobytes() == b.raw(name).tobytes()
    own = [{key: value for key, value in f.metadata.items() if not key.startswith("split.")} for f in (a, b)]
    assert own[0] == own[1]


def test_the_files_together_are_the_model(folder: Path, tmp_path: Path) -> None:
    whole = converters.run(converters.plan(folder, "f16"), tmp_path / "whole.gguf")
    plan = converters.plan(folder, "f16", split_max_size=LIMIT)
    result = converters.run(plan, tmp_path / "parts.gguf")
    names = [file.path.name for file in result.files]
    assert names == [f"parts-{i + 1:05}-of-{len(names):05}.gguf" for i in range(len(names))] and len(names) > 2
    on_disk = [file.path.stat().st_size for file in result.files]
    assert [file.size_bytes for file in result.files] == plan.file_bytes == on_disk
    assert result.output == tmp_path / names[0] and result.size_bytes == plan.size_bytes
    with open_gguf(result.output) as f, open_gguf(whole.output) as one:
        same(f, one)
        assert [kind.name for key, (kind, *_) in f.metadata_types.items() if key.startswith("split.")] == [
            "UINT16", "UINT16", "INT32",
        ]  # fmt: skip
    assert not list(tmp_path.glob(".*"))


def test_a_file_is_full_when_upstreams_would_be(folder: Path, tmp_path: Path) -> None:
    plan = converters.plan(folder, "f32", split_max_size=LIMIT)
    writer = gguf.GGUFWriter(None, "llama", split_max_size=LIMIT)
    for output in plan.outputs:
        writer.add_tensor_info(output.name, output.shape, np.dtype(np.float32), output.size_bytes)
    assert [list(file) for file in writer.tensors] == [[one.name for one in file] for file in plan.files]


def test_a_model_that_fits_is_one_file_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    result = converters.run(converters.plan(folder, "f16", split_max_size=1 << 30), tmp_path / "m.gguf")
    assert result.output == tmp_path / "m.gguf" and "files" not in result.as_json()
    with open_gguf(result.output) as f:
        assert not [key for key in f.metadata if key.startswith("split.")]


def test_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MAX_FILES", 3)
    with pytest.raises(UsageError, match="3 at most"):
        converters.plan(folder, "f16", split_max_size=1).size_bytes  # noqa: B018


def broken(tmp_path: Path) -> Path:
    weights = llama_tensors()
    weights["model.layers.1.mlp.down_proj.weight"][-1, -1] = np.nan
    return write_llama(tmp_path / "broken", tensors=weights)


def test_one_bad_tensor_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out-00001-of-00099.gguf").write_bytes(b"old")
    with pytest.raises(IntegrityError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        converters.run(converters.plan(broken(tmp_path), "f16", split_max_size=LIMIT), tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out-00001-of-00099.gguf"]


def test_a_rename_that_fails_takes_back_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[1].write_bytes(b"old")
    replace, renamed = Path.replace, []

    def refuse_the_second(self: Path, target: Path) -> Path:
        renamed.append(target.name)
        if len(renamed) == 2:
            raise PermissionError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_the_second)
    with pytest.raises(PermissionError), splits.atomic_outputs(paths, 0) as parts:
        for part in parts:
            part.write_bytes(b"new")
    assert renamed == ["c", "b"] or renamed == ["c", "b", "a"]
    assert paths[1].read_bytes() == b"old" and not paths[2].exists() and not paths[0].exists()


def test_the_checkpoint_itself_is_never_written_over(folder: Path) -> None:
    with pytest.raises(UsageError, match="one of the files that are converted"):
        converters.run(converters.plan(folder, "f16"), folder / "model.safetensors")
