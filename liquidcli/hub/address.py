"""A model from a plain https address, kept under $LIQUID_HOME/models.

Knows resuming, redirects and that an address names its file badly. No token is ever sent to such an address.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import IntegrityError, NetworkError
from ..files import check_space, sha256_file
from .home import disk_set_by, folder, liquid_home, read_state, write_state
from .refs import Reference
from .store import remember_sha256
from .transport import Progress, fetch_into, hub_errors, within

_ANSWER_LIMIT_S = 20.0


@dataclass(frozen=True)
class Remote:
    url: str  # after redirects
    size_bytes: int | None
    version: str  # what the server calls this state of the file


def stored(ref: Reference) -> Path | None:
    """The file an address was fetched to before."""
    name = read_state("addresses.json").get(ref.text, {}).get("file")
    path = liquid_home() / "models" / str(name)
    return path if name and path.is_file() else None


def fetch(ref: Reference, progress: Progress | None = None) -> Path:
    """The file, fetched unless it lies here in the state the server has."""
    with disk_set_by("LIQUID_HOME"), hub_errors(ref.text):
        remote = _ask(ref.text)
        have = stored(ref)
        if have and read_state("addresses.json")[ref.text]["version"] == remote.version:
            return have
        target = folder("models") / _file_name(ref)
        check_space(target.parent, remote.size_bytes or 0)
        _download(ref, remote, target, progress)
    remember_sha256(target, sha256_file(target))
    entry = {"file": target.name, "version": remote.version}
    write_state("addresses.json", {**read_state("addresses.json"), ref.text: entry})
    return target


def plan(ref: Reference) -> dict[str, Any]:
    """What `fetch` would fetch, and how much of it is missing."""
    with hub_errors(ref.text):
        remote = _ask(ref.text)
    is_here = stored(ref) and read_state("addresses.json")[ref.text]["version"] == remote.version
    size_bytes = remote.size_bytes or 0
    file = {"path": ref.file, "size_bytes": size_bytes}
    return {"size_bytes": size_bytes, "missing_bytes": 0 if is_here else size_bytes, "files": [file]}


def _ask(url: str) -> Remote:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    answer = within(_ANSWER_LIMIT_S, urlsplit(url).netloc, lambda: get_session().head(url, timeout=_ANSWER_LIMIT_S))
    hf_raise_for_status(answer)
    if urlsplit(str(answer.url)).scheme != urlsplit(url).scheme:
        raise NetworkError(f"{url} leads to {answer.url}, which is not https")
    length = answer.headers.get("content-length", "")
    size_bytes = int(length) if length.isdecimal() else None
    version = answer.headers.get("etag") or answer.headers.get("last-modified") or ""
    return Remote(str(answer.url), size_bytes, f"{version} {size_bytes}")


def _file_name(ref: Reference) -> str:
    """The address's last part; with a mark when a file of that name came from elsewhere."""
    name = ref.file or "model.gguf"
    owners = {entry.get("file"): url for url, entry in read_state("addresses.json").items()}
    is_free = not (liquid_home() / "models" / name).exists()
    if is_free or owners.get(name) == ref.text:
        return name
    return f"{name.removesuffix('.gguf')}-{hashlib.sha256(ref.text.encode()).hexdigest()[:8]}.gguf"


def _download(ref: Reference, remote: Remote, target: Path, progress: Progress | None) -> None:
    mark = hashlib.sha256(f"{ref.text} {remote.version}".encode()).hexdigest()[:12]
    part = target.with_name(f".{target.name}.{mark}.incomplete")
    fetch_into(part, remote.url, remote.size_bytes, target.name, {}, progress)
    with part.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        part.unlink()
        raise IntegrityError(f"{ref.text} is no GGUF file: it begins with {magic!r}")
    part.replace(target)
