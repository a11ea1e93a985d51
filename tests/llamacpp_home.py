"""A miniature of the folder llamacpp/ with an upstream archive of a few lines, for tests of the build machinery."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from liquidbuild.pin import Pin, read_pin

ROOT = Path(__file__).resolve().parent.parent
LLAMACPP = ROOT / "llamacpp"
ARCHIVE_ROOT = "up_stream-1.2.3"
FILES = {
    "llama_cpp/__init__.py": 'from .llama import *\n\n__version__ = "1.2.3"\n',
    "vendor/llama.cpp/src/list.txt": "".join(f"line {number}\n" for number in range(1, 21)),
    "vendor/llama.cpp/src/models/other.cpp": "int other;\n",
    "vendor/llama.cpp/include/llama.h": "// public\n",
    "tool.sh": "#!/bin/sh\n",
    ".git/config": "[core]\n",
    "vendor/llama.cpp/.git": "gitdir: elsewhere\n",
}
HOOK = """Hook the fourth line

It has a reason.

diff --git a/vendor/llama.cpp/src/list.txt b/vendor/llama.cpp/src/list.txt
--- a/vendor/llama.cpp/src/list.txt
+++ b/vendor/llama.cpp/src/list.txt
@@ -3,2 +3,3 @@
 line 3
+hook
 line 4
"""


Member = tuple[tarfile.TarInfo, bytes]


@dataclass
class Home:
    folder: Path
    archive: Path
    pin: Pin

    def add_patch(self, name: str, text: str) -> None:
        (self.folder / "patches" / name).write_text(text)
        with (self.folder / "patches" / "series").open("a") as file:
            file.write(f"{name}\n")


def member(name: str, text: str = "", mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> Member:
    info, data = tarfile.TarInfo(name), text.encode()
    info.size, info.mode, info.type, info.mtime = len(data), mode, kind, 1_600_000_000
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname, info.size, data = text, 0, b""
    return info, data


def write_archive(path: Path, members: list[Member]) -> str:
    """Writes the archive and returns its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_home(folder: Path) -> Home:
    for name in ("patches", "src/models"):
        (folder / name).mkdir(parents=True)
    archive = folder.parent / f"{ARCHIVE_ROOT}.tar.gz"
    modes = {"tool.sh": 0o755}
    members = [member(f"{ARCHIVE_ROOT}/{name}", text, modes.get(name, 0o644)) for name, text in FILES.items()]
    sha256 = write_archive(archive, members)
    (folder / "UPSTREAM").write_text(
        "# the pin\nproject = up_stream\nversion = 1.2.3\narchive = {project}-{version}.tar.gz\n"
        f"sha256 = {sha256}\ncommit = abc123\nliquid = 7\n")
    (folder / "patches" / "series").write_text("# in order\n")
    (folder / "src" / "liquid.h").write_text("// header\n")
    (folder / "src" / "liquid-depth.cpp").write_text("int depth;\n")
    (folder / "src" / "models" / "liquid.cpp").write_text("int model;\n")
    home = Home(folder, archive, read_pin(folder / "UPSTREAM"))
    home.add_patch("0001-hook-the-fourth-line.patch", HOOK)
    return home
