"""The wheel of the root project: one import root of its own and no generic names beside it."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "liquidcli", "converters", "quant")

EVERY_MODULE = """
import importlib, pkgutil, sys
import liquidcli
for package in ("liquidcli.converters", "liquidcli.quant"):
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        importlib.import_module(module.name)
print(" ".join(sorted({"converters", "quant"} & set(sys.modules))))
"""


def setuptools_is_new_enough() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if not setuptools_is_new_enough():
        pytest.skip("setuptools >= 77 is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "-w", str(folder), str(source)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    info = {name for name in top if name.endswith(".dist-info")}
    assert top - info == {"liquidcli"} and len(info) == 1 and info.pop().startswith("liquid_depth-")


def test_every_package_of_the_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    rooms = {"liquidcli": ROOT / "liquidcli", "liquidcli/converters": ROOT / "converters",
             "liquidcli/quant": ROOT / "quant"}
    expected = {f"{prefix}/{path.relative_to(folder).as_posix()}" for prefix, folder in rooms.items()
                for path in folder.rglob("*.py") if not {"__pycache__"} & set(path.parts)
                and not (prefix == "liquidcli" and path.relative_to(folder).parts[0] in ("converters", "quant"))}
    assert not expected - set(wheel.namelist())


def test_mapped_rooms_have_one_name_each() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
