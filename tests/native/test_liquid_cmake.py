"""The build settings of ours, on a project of one file: AMX only when asked for, everything else as the user set it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from liquidbuild.pin import HOME

CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
FEATURES = ("__AMX_TILE__", "__AMX_INT8__", "__AMX_BF16__", "__AVX512VNNI__", "__AVX2__", "KEPT")
SOURCE = "".join(f'#ifdef {name}\nconst char * has_{name} = "has {name};";\n#endif\n' for name in FEATURES)
PROJECT = "cmake_minimum_required(VERSION 3.21)\nproject(one C CXX)\nadd_library(one STATIC one.c two.cpp)\n" \
          "target_compile_options(one PRIVATE -march=sapphirerapids)\n"

pytestmark = pytest.mark.skipif(
    CMAKE is None or shutil.which("cc") is None or platform.machine() not in ("x86_64", "AMD64"),
    reason="needs CMake and a compiler for x86-64",
)


def features(folder: Path, *settings: str) -> dict[str, set[str]]:
    """What each language's compiler was allowed to use, in a build for a processor that has everything."""
    (folder / "CMakeLists.txt").write_text(PROJECT)
    (folder / "one.c").write_text(SOURCE)
    (folder / "two.cpp").write_text(f'extern "C" {{\n{SOURCE}\n}}\n')
    build = folder / "build"
    command = [CMAKE, "-S", folder, "-B", build, f"-DCMAKE_PROJECT_one_INCLUDE={HOME / 'liquid.cmake'}", *settings]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([CMAKE, "--build", build], capture_output=True, text=True, check=False)
    if done.returncode and "sapphirerapids" in done.stdout + done.stderr:
        pytest.skip("this compiler knows no processor with AMX")
    assert done.returncode == 0, done.stdout + done.stderr
    objects = {path.suffixes[0]: path.read_bytes() for path in build.rglob("*.o")}
    return {suffix: {name for name in FEATURES if f"has {name};".encode() in data} for suffix, data in objects.items()}


def test_amx_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    found = features(tmp_path, "-DCMAKE_C_FLAGS=-DKEPT", "-DCMAKE_CXX_FLAGS=-DKEPT")
    assert found == {".c": {"__AVX512VNNI__", "__AVX2__", "KEPT"}, ".cpp": {"__AVX512VNNI__", "__AVX2__", "KEPT"}}


def test_amx_comes_back_when_asked_for(tmp_path: Path) -> None:
    found = features(tmp_path, "-DLIQUID_AMX=ON")
    assert all({"__AMX_TILE__", "__AMX_INT8__", "__AMX_BF16__", "__AVX512VNNI__"} <= names for names in found.values())
