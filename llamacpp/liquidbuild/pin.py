"""The pin: which upstream archive this folder builds on. Knows the file UPSTREAM and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import BuildError

HOME = Path(__file__).resolve().parent.parent  # the folder llamacpp/
FIELDS = ("project", "version", "archive", "sha256", "commit", "liquid")


@dataclass(frozen=True)
class Pin:
    """One upstream release, named so that no other bytes can take its place."""

    project: str
    version: str
    archive: str
    sha256: str
    commit: str
    liquid: str

    @property
    def full_version(self) -> str:
        return f"{self.version}+liquid.{self.liquid}"

    @property
    def root(self) -> str:
        """The one folder that the archive unpacks to."""
        return self.archive.removesuffix(".tar.gz")

    @property
    def requirement(self) -> str:
        return f"{self.project.replace('_', '-')}=={self.version}"


def read_pin(path: Path = HOME / "UPSTREAM") -> Pin:
    """Reads `key = value` lines; every field of FIELDS exactly once, nothing else."""
    values: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not value or key not in FIELDS or key in values:
            raise BuildError(f"{path.name}:{number}: expected one of {', '.join(FIELDS)} once, as `key = value`")
        values[key] = value
    if missing := [key for key in FIELDS if key not in values]:
        raise BuildError(f"{path.name}: {', '.join(missing)} missing")
    values["archive"] = values["archive"].format(project=values["project"], version=values["version"])
    if len(values["sha256"]) != 64 or set(values["sha256"]) - set("0123456789abcdef"):
        raise BuildError(f"{path.name}: sha256 must be 64 lower-case hexadecimal digits")
    return Pin(**values)
