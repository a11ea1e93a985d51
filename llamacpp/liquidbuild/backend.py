"""The build backend (PEP 517): prepares the tree, then hands over to upstream's own, scikit-build-core.

Knows which settings of ours go into every build. CMAKE_ARGS, CFLAGS and pip's --config-settings pass through untouched.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import BuildError, tree
from .pin import HOME, Pin, read_pin


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: dict | None = None) -> str:
    with prepared() as settings:
        from scikit_build_core import build

        return build.prepare_metadata_for_build_wheel(metadata_directory, {**settings, **(config_settings or {})})


def build_wheel(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    with prepared() as settings:
        from scikit_build_core import build

        return build.build_wheel(wheel_directory, {**settings, **(config_settings or {})}, metadata_directory)


@contextlib.contextmanager
def prepared() -> Iterator[dict[str, str]]:
    """Inside: the current folder is a patched tree, the value is our build settings. Nothing of it stays behind."""
    pin, before = read_pin(), Path.cwd()
    with tempfile.TemporaryDirectory(prefix="liquid-") as folder:
        out = Path(folder).resolve() / "tree"
        try:
            tree.prepare(pin, out)
        except BuildError as error:
            sys.exit(f"llamacpp: {error}")
        os.environ.setdefault("CCACHE_BASEDIR", str(out))  # else no two builds would share a path
        os.chdir(out)
        try:
            yield cmake_settings(pin, out)
        finally:
            os.chdir(before)


def cmake_settings(pin: Pin, out: Path) -> dict[str, str]:
    """scikit-build-core settings; its CMake definitions come before those of CMAKE_ARGS, which win."""
    return {
        "build-dir": str(out / "build"),
        "cmake.define.CMAKE_PROJECT_llama_cpp_INCLUDE": str(HOME / "liquid.cmake"),
        "cmake.define.LLAMA_BUILD_COMMIT": pin.commit,
        "cmake.define.LLAMA_BUILD_NUMBER": "0",
    }


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> str:
    """This folder itself: the pin, the patches and our files, not upstream's."""
    pin = read_pin()
    root = f"{pin.project}-{pin.full_version}"
    about = f"Metadata-Version: 2.1\nName: {pin.project.replace('_', '-')}\nVersion: {pin.full_version}\n".encode()
    with tarfile.open(Path(sdist_directory) / f"{root}.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(HOME.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                tar.add(path, f"{root}/{path.relative_to(HOME).as_posix()}", recursive=False)
        entry = tarfile.TarInfo(f"{root}/PKG-INFO")
        entry.size = len(about)
        tar.addfile(entry, io.BytesIO(about))
    return f"{root}.tar.gz"
