"""What is ours: the patch series, the whole source files, and the stamp over both. Knows no upstream file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import BuildError, unidiff
from .pin import HOME, Pin

VENDOR = "vendor/llama.cpp"
SUFFIXES = (".h", ".cpp", ".inc")


def read_series(folder: Path = HOME / "patches") -> list[str]:
    """The patch names in order; every *.patch file of the folder once, and no other."""
    lines = (line.strip() for line in (folder / "series").read_text(encoding="utf-8").splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if len(names) != len(set(names)):
        raise BuildError("patches/series names a patch twice")
    present = {path.name for path in folder.glob("*.patch")}
    if missing := [name for name in names if name not in present]:
        raise BuildError(f"patches/series names {missing[0]}, which is not there")
    if extra := sorted(present - set(names)):
        raise BuildError(f"patches/{extra[0]} is not in patches/series")
    return names


def read_patches(folder: Path = HOME / "patches") -> list[unidiff.Patch]:
    return [unidiff.parse(name, (folder / name).read_bytes().decode("utf-8")) for name in read_series(folder)]


def sources(folder: Path = HOME / "src") -> dict[str, Path]:
    """Our whole files: path inside the tree -> file here."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and name == "models":
            continue
        if path.is_dir() or path.suffix not in SUFFIXES:
            raise BuildError(f"src/{name}: expected *.h, *.cpp and *.inc files in src/ and src/models/ only")
        found[f"{VENDOR}/include/{name}" if name == "liquid.h" else f"{VENDOR}/src/{name}"] = path
    return found


def stamp(pin: Pin, home: Path = HOME) -> str:
    """`<pin>-<series>`: 12 hexadecimal digits of the archive's hash and of the hash over patches and src."""
    digest = hashlib.sha256()
    patches = [home / "patches" / name for name in read_series(home / "patches")]
    for path in [*patches, *sources(home / "src").values()]:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(home).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return f"{pin.sha256[:12]}-{digest.hexdigest()[:12]}"
