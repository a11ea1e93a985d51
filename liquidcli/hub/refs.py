"""What a person types to name a model, taken apart.

Knows spellings: hub references in the forms ollama and llama.cpp accept, addresses, paths. Touches neither the
network nor the disk, so it cannot know whether the thing exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote, urlsplit

from ..errors import UsageError

GATES_SUFFIX = "+gates"

_NAME = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"refs/pr/\d+|[\w.-]+"
_HUB = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<rev>{_REVISION}))?(?::(?P<tag>[\w.-]+))?")
_HUB_FILE = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<rev>{_REVISION}))?/(?P<file>[^\s:]+)")
_HUB_PREFIXES = ("hf.co/", "huggingface.co/", "www.huggingface.co/", "hf://models/", "hf://", "huggingface://", "hf:")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HOW = "write hf.co/owner/name or hf.co/owner/name:TAG"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Reference:
    """A hub file (repo, revision, tag or file), an address, or something local: an alias or a path."""

    text: str
    kind: Literal["hub", "url", "local"]
    repo_id: str | None = None
    revision: str = "main"
    tag: str | None = None
    file: str | None = None


def parse_ref(text: str) -> Reference:
    """Take a reference apart; UsageError for an address that cannot be one of a model."""
    for prefix in _HUB_PREFIXES:
        if text.startswith(prefix):
            if text.removeprefix(prefix).startswith(("datasets/", "spaces/", "buckets/")):
                raise UsageError(f"{text} is no model", hint=_HOW)
            return _hub(text, text.removeprefix(prefix).rstrip("/"), must=True)
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        return _address(text)
    return _hub(text, text, must=False)


def split_gates(text: str) -> tuple[str, bool]:
    """`REF+gates` -> (`REF`, True)"""
    return (text.removesuffix(GATES_SUFFIX), True) if text.endswith(GATES_SUFFIX) else (text, False)


def is_spelled_like_ref(text: str) -> bool:
    """By its spelling alone: an address, a hub reference, or the name of a GGUF file."""
    text = split_gates(text)[0]
    if not text or re.search(r"\s", text):
        return False
    if text.startswith(("https://", "http://", *_HUB_PREFIXES)) or text.lower().endswith(".gguf"):
        return True
    return _HUB.fullmatch(text) is not None


def _hub(text: str, rest: str, *, must: bool) -> Reference:
    match = _HUB.fullmatch(rest)
    if match and (must or not match["repo"].lower().endswith(".gguf")):
        found = Reference(text, "hub", match["repo"], match["rev"] or "main", match["tag"])
        is_file = (match["tag"] or "").lower().endswith(".gguf")
        return replace(found, tag=None, file=match["tag"]) if is_file else found
    file = _HUB_FILE.fullmatch(rest)
    if file and (must or rest.lower().endswith(".gguf")):
        return Reference(text, "hub", file["repo"], file["rev"] or "main", file=_safe(text, file["file"]))
    if must:
        raise UsageError(f"{text} does not name a model on the hub", hint=_HOW)
    return Reference(text, "local")


def _address(text: str) -> Reference:
    parts = urlsplit(text)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise UsageError(f"{text} is no https address", hint="models are fetched over https only")
    if parts.hostname in _HUB_HOSTS:
        return _hub_page(text, unquote(parts.path).strip("/"))
    if not parts.path.lower().endswith(".gguf"):
        raise UsageError(f"{text} does not end in .gguf", hint="an address must name a GGUF file")
    return Reference(text, "url", file=_safe(text, unquote(parts.path).rsplit("/", 1)[-1]))


def _hub_page(text: str, path: str) -> Reference:
    """owner/name · owner/name/tree/REV · owner/name/{resolve,blob}/REV/path.gguf"""
    match = re.fullmatch(rf"({_NAME}/{_NAME})(?:/(?:tree|resolve|blob|raw)/([^/]+)(?:/(.+))?)?", path)
    if not match:
        return _hub(text, path, must=True)
    return Reference(text, "hub", match[1], match[2] or "main", file=_safe(text, match[3]) if match[3] else None)


def _safe(text: str, file: str) -> str:
    if any(part in ("", ".", "..") for part in file.split("/")) or "\\" in file:
        raise UsageError(f"{text} does not name a file inside a repository", hint="hf.co/owner/name/file.gguf does")
    return file
