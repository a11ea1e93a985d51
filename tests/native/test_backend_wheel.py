"""The patched wheel against the archive it came from: same Python package, our version, our stamp, no AMX."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from liquidbuild import archive, kept, series, tree, worktree
from liquidbuild.pin import HOME, read_pin

PIN = read_pin()


@pytest.fixture(scope="module")
def upstream() -> Path:
    path = archive.kept_archive(PIN)
    if path is None:
        pytest.skip(f"{PIN.archive} is not in the cache; `make setup` fetches it")
    return path


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    path = kept.kept_wheel(PIN)
    if path is None:
        pytest.skip("no wheel is kept for this content; `make setup` compiles it")
    return zipfile.ZipFile(path)


def test_the_committed_series_fits_and_survives_a_round_trip(upstream: Path, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    worktree.make(PIN, tmp_path / "tree", upstream)
    shutil.copytree(HOME / "patches", tmp_path / "patches")
    worktree.export(tmp_path / "tree", tmp_path / "patches")
    assert {path.name: path.read_bytes() for path in (tmp_path / "patches").iterdir()} == {
        path.name: path.read_bytes() for path in (HOME / "patches").iterdir()
    }


def test_the_python_package_is_upstreams_but_for_version_and_stamp(wheel: zipfile.ZipFile, upstream: Path) -> None:
    names = set(wheel.namelist())
    with tarfile.open(upstream) as tar:
        for member in tar:
            name = member.name.removeprefix(f"{PIN.root}/")
            if not member.isreg() or not name.startswith("llama_cpp/"):
                continue
            assert name in names
            if name != tree.INIT:
                assert wheel.read(name) == tar.extractfile(member).read(), name
    ours = {name for name in names if name.startswith("llama_cpp/") and "liquid" in name}
    assert ours == {tree.STAMP_MODULE}


def test_the_wheel_names_itself_as_the_drop_in(wheel: zipfile.ZipFile) -> None:
    assert Path(wheel.filename).name.startswith(f"llama_cpp_python-{PIN.full_version}-py3-none-")
    metadata = wheel.read(f"llama_cpp_python-{PIN.full_version}.dist-info/METADATA").decode()
    assert f"\nVersion: {PIN.full_version}\n" in metadata and "Requires-Dist: numpy" in metadata
    assert f'STAMP = "{series.stamp(PIN)}"' in wheel.read(tree.STAMP_MODULE).decode()


def test_the_wheel_holds_upstreams_libraries_and_headers(wheel: zipfile.ZipFile) -> None:
    libraries = {name.split("/")[-1].split(".")[0] for name in wheel.namelist() if name.startswith("llama_cpp/lib/")}
    assert {"libllama", "libggml", "libggml-base", "libggml-cpu", "libmtmd"} <= libraries
    assert {"include/llama.h", "include/liquid.h", "include/ggml.h"} <= set(wheel.namelist())


def test_the_library_and_the_package_carry_one_stamp() -> None:
    stamps = pytest.importorskip("llama_cpp._liquid_stamp", reason="llama_cpp was not installed from our wheel")
    if os.environ.get("LLAMA_CPP_LIB_PATH"):
        pytest.skip("LLAMA_CPP_LIB_PATH names another library")
    from llama_cpp import llama_cpp

    library = llama_cpp._lib
    library.liquid_build_stamp.restype = ctypes.c_char_p
    assert library.liquid_build_stamp().decode() == stamps.STAMP
    assert importlib.metadata.version("llama-cpp-python") == stamps.VERSION == PIN.full_version


@pytest.mark.skipif("LIQUID_AMX" in os.environ.get("CMAKE_ARGS", ""), reason="AMX was asked for")
def test_the_library_uses_no_amx() -> None:
    from llama_cpp import _ggml

    assert _ggml.libggml.ggml_cpu_has_amx_int8() == 0
