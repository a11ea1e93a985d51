"""What is compiled once and kept: the patched wheel, and the unpatched library with its tools to compare with.

Knows the cache and what a build depends on. Each result lies under a key of its own and is whole or not there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import BuildError, archive, series
from .pin import HOME, Pin

COMPILER_VARIABLES = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
NOT_IN_WHEEL = ("kept", "worktree")  # modules that have no say in what a wheel holds
ORACLE_TARGETS = ("llama-perplexity", "llama-quantize", "llama-imatrix")
ORACLE_SCRIPTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
ORACLE_OFF = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER",
              "LLAMA_BUILD_APP")


def machine() -> str:
    """What native code depends on: platform and processor features."""
    facts = [sysconfig.get_platform(), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "\n".join([*facts, platform.processor()])
    return "\n".join(facts + sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def key(*parts: bytes | str) -> str:
    """12 hexadecimal digits over the given parts, the compiler's settings and the machine."""
    digest = hashlib.sha256()
    settings = (os.environ.get(name, "") for name in COMPILER_VARIABLES)
    for part in (*parts, *settings, machine()):
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def wheel(pin: Pin) -> Path:
    """The patched wheel of this content for this machine, compiled if it is not kept yet."""
    if found := kept_wheel(pin):
        return found
    print(f"compiling {pin.project} {pin.full_version}: some minutes, once", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps"]
    folder = _wheel_folder(pin)
    _keep(folder, lambda part: _run([*pip, "-w", str(part), str(HOME)]))
    return next(folder.glob("*.whl"))


def kept_wheel(pin: Pin) -> Path | None:
    return next(_wheel_folder(pin).glob("*.whl"), None)


def _wheel_folder(pin: Pin) -> Path:
    modules = (path for path in sorted((HOME / "liquidbuild").glob("*.py")) if path.stem not in NOT_IN_WHEEL)
    recipe = [HOME / "pyproject.toml", HOME / "liquid.cmake", *modules]
    build = key(pin.full_version, *(path.read_bytes() for path in recipe))
    return archive.cache_home() / "wheels" / f"{series.stamp(pin)}-{build}"


def oracle(pin: Pin) -> Path:
    """A folder with the unpatched libraries, upstream's tools and its converter: same archive, same flags."""
    settings = (HOME / "liquid.cmake").read_bytes()
    folder = archive.cache_home() / "oracle" / f"{pin.sha256[:12]}-{key(settings, *ORACLE_TARGETS, *ORACLE_SCRIPTS)}"
    if not folder.is_dir():
        print(f"compiling the unpatched {pin.archive} and its tools: some minutes, once", file=sys.stderr, flush=True)
        _keep(folder, lambda part: _compile_oracle(pin, part))
    return folder


def _compile_oracle(pin: Pin, part: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="liquid-") as scratch:
        tree = Path(scratch).resolve() / "tree"
        archive.unpack(archive.obtain(pin), pin, tree)
        os.environ.setdefault("CCACHE_BASEDIR", str(tree))
        defines = {
            "CMAKE_MAKE_PROGRAM": _tool("ninja"), "CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON",
            "CMAKE_PROJECT_llama.cpp_INCLUDE": HOME / "liquid.cmake", "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
            "LLAMA_BUILD_COMMIT": pin.commit, "LLAMA_BUILD_NUMBER": 0, **dict.fromkeys(ORACLE_OFF, "OFF"),
        }
        settings = [f"-D{name}={value}" for name, value in defines.items()]
        source, build = tree / series.VENDOR, tree / "build"
        _run([_tool("cmake"), "-G", "Ninja", "-S", str(source), "-B", str(build), *settings,
              *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
        _run([_tool("cmake"), "--build", str(build), "--target", *ORACLE_TARGETS])
        shutil.copytree(build / "bin", part, symlinks=True, dirs_exist_ok=True)
        for name in ORACLE_SCRIPTS:
            path = source / name
            shutil.copytree(path, part / name) if path.is_dir() else shutil.copy(path, part)


def _tool(name: str) -> str:
    """A build tool: the one beside this Python (installed with pip), else the one on PATH."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise BuildError(f"{name} is not installed; `{sys.executable} -m pip install {name}` gets it")
    return found


def _keep(folder: Path, make: Callable[[Path], None]) -> None:
    """Runs `make` on an empty folder beside the target, which takes the target's place when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-") as scratch:
        part = Path(scratch) / "kept"
        part.mkdir()
        make(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def _run(command: list[str]) -> None:
    """A build step; its words go to stderr, so that stdout stays this program's answer."""
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
        raise BuildError(f"failed, its words are above: {shlex.join(command)}")
