"""A model from a plain https address, kept under $LIQUID_HOME/models.

Knows resuming, redirects and that an address names its file badly. No token is ever sent to such an address.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import IntegrityError, NetworkError, quote
from ..files import check_space
from ..gguf_parse import read_shard
from .cache import sole_writer
from .download import Source, patiently, version_of
from .download import fetch as fetch_into
from .home import disk_set_by, folder, know_sha256, known_sha256, liquid_home, read_state, update_state
from .refs import Reference
from .store import remember_sha256, sha256_by_name
from .transport import Progress, hub_errors, within

_ANSWER_LIMIT_S = 20.0


@dataclass(frozen=True)
class Remote:
    url: str  # after redirects
    size_bytes: int | None
    mark: str  # what the server calls this state of the file
    version: str  # that and the size, as remembered


def stored(ref: Reference) -> Path | None:
    """The file an address was fetched to before, if that is what lies there still."""
    entry = read_state("addresses.json").get(ref.text, {})
    path = liquid_home() / "models" / str(entry.get("file"))
    return path if path.is_file() and entry.get("sha256") == sha256_by_name(path) else None


def forget(paths: Iterable[Path]) -> None:
    """Deleted files: their names are free for other addresses."""
    names = {path.name for path in paths}
    of_others = lambda known: {url: entry for url, entry in known.items() if entry.get("file") not in names}  # noqa: E731
    update_state("addresses.json", of_others)


def fetch(ref: Reference, progress: Progress | None = None) -> Path:
    """The file, fetched unless it lies here in the state the server has."""
    with disk_set_by("LIQUID_HOME"), hub_errors(ref.text):
        remote = _ask(ref.text)
        lock = folder("locks") / f"{hashlib.sha256(_own_name(ref).encode()).hexdigest()[:16]}.lock"
        size_bytes, waiting = remote.size_bytes or 0, "another process fetches it"
        told = functools.partial(progress, 0, size_bytes, waiting) if progress else None
        with sole_writer(lock, told or (lambda: None)):
            have = stored(ref)
            if have and _is_as_fetched(have) and read_state("addresses.json")[ref.text]["version"] == remote.version:
                return have
            return _bring(ref, remote, progress)


def _is_as_fetched(path: Path) -> bool:
    return known_sha256(path) == sha256_by_name(path)


def _bring(ref: Reference, remote: Remote, progress: Progress | None) -> Path:
    target = folder("models") / _file_name(ref)
    check_space(target.parent, remote.size_bytes or 0)
    sha256 = _download(ref, remote, target, progress)
    know_sha256(target, sha256)
    remember_sha256(target, sha256)
    entry = {"file": target.name, "version": remote.version, "sha256": sha256}
    update_state("addresses.json", lambda known: {**known, ref.text: entry})
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

    def ask():
        answer = get_session().head(url, timeout=_ANSWER_LIMIT_S, headers={"Accept-Encoding": "identity"})
        hf_raise_for_status(answer)
        return answer

    answer = within(_ANSWER_LIMIT_S, urlsplit(url).netloc, lambda: patiently(ask, _ANSWER_LIMIT_S / 2))
    if urlsplit(str(answer.url)).scheme != urlsplit(url).scheme:
        raise NetworkError(f"{url} leads to {answer.url}, which is not https", hint="find another address")
    length = answer.headers.get("content-length", "")
    size_bytes = int(length) if length.isdecimal() else None
    mark = version_of(answer.headers)
    return Remote(str(answer.url), size_bytes, mark, f"{mark} {size_bytes}")


def _own_name(ref: Reference) -> str:
    return ref.file or "model.gguf"


def _file_name(ref: Reference) -> str:
    """The address's last part; with a mark when a file of that name came, or comes, from elsewhere."""
    name = _own_name(ref)
    owners = {entry.get("file"): url for url, entry in read_state("addresses.json").items()}
    lies_there = (liquid_home() / "models" / name).exists()
    if owners.get(name, "" if lies_there else ref.text) == ref.text:
        return name
    return f"{name.removesuffix('.gguf')}-{hashlib.sha256(ref.text.encode()).hexdigest()[:8]}.gguf"


def _download(ref: Reference, remote: Remote, target: Path, progress: Progress | None) -> str:
    """The sha256 of what now lies at `target`; without a version nobody can know that a rest belongs to a beginning."""
    mark = hashlib.sha256(f"{ref.text} {remote.version}".encode()).hexdigest()[:12]
    part = target.with_name(f".{target.name}.{mark}.incomplete")
    if not remote.mark:
        part.unlink(missing_ok=True)
    sha256 = fetch_into(part, Source(remote.url, target.name, remote.size_bytes, version=remote.mark), progress)
    try:
        _check_gguf(part, ref.text)
    except IntegrityError:
        part.unlink()
        raise
    part.replace(target)
    return sha256


def _check_gguf(part: Path, url: str) -> None:
    """All that can be known of a file whose hash nobody told: that it is a GGUF, and not cut off."""
    hint = "check the address: it must lead to the GGUF file itself"
    with part.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise IntegrityError(f"{url} is no GGUF file: it begins with {quote(magic)}", hint=hint)
    try:
        read_shard(part, 0)
    except IntegrityError as error:
        raise IntegrityError(error.message.replace(str(part), url), hint=hint) from error
