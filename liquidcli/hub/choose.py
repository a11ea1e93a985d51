"""Which of a repository's files is the model that was meant.

Knows llama.cpp's rule (the tag; without one Q4_K_M, then Q8_0, then the first), shards, and the files that only go
along with a model. Looks at names alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import NotFoundError

_PREFERRED = ("Q4_K_M", "Q8_0")
_SIDECARS = ("mmproj", "imatrix", "mtp", "eagle3", "dflash", "dspark")
_SIDECAR = re.compile(rf"(^|[._-])({'|'.join(_SIDECARS)})([._-]|$)|(^|[._-])gates\.gguf$", re.IGNORECASE)
GATE_PACK = re.compile(r"(^|[/._-])gates\.gguf$", re.IGNORECASE)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_TYPES = r"(?:UD-)?(?:I?Q\d+(?:_\w+)?|TQ\d_\d|BF16|F16|F32|MXFP4\w*|NVFP4)"
_TAG = re.compile(rf"(?:^|[._/-])({_TYPES})(?=[.-])", re.IGNORECASE)


def model_files(paths: Iterable[str]) -> list[str]:
    """GGUF files that are models: no sidecars, of split ones the first shard."""
    return sorted(
        path
        for path in paths
        if path.lower().endswith(".gguf")
        and not _SIDECAR.search(path.rsplit("/", 1)[-1])
        and ((shard := _SHARD.match(path)) is None or int(shard["number"]) == 1)
    )


def shards(path: str) -> list[str]:
    """All files of a model whose first file is `path`."""
    match = _SHARD.match(path)
    if not match:
        return [path]
    count = int(match["count"])
    return [f"{match['stem']}-{i + 1:05d}-of-{match['count']}{path[-5:]}" for i in range(count)]


def quant_tag(path: str) -> str | None:
    """`SmolLM2-135M-Instruct.Q4_1.gguf` -> `Q4_1`"""
    tags = _TAG.findall(path)
    return tags[-1].upper() if tags else None


def choose(where: str, paths: Iterable[str], tag: str | None = None, file: str | None = None) -> list[str]:
    """The files of the model meant, shards in order; NotFoundError names `where` and what there is instead."""
    paths = list(paths)
    if file is not None:
        return _complete(_named(where, file, paths), paths)
    models = model_files(paths)
    for wanted in [tag] if tag else _PREFERRED:
        if found := _tagged(wanted, models):
            return _complete(found, paths)
    if models and not tag:
        return _complete(models[0], paths)
    if not models:
        raise NotFoundError(f"{where} has no GGUF file", hint=f"liquid convert {where} makes one of a checkpoint")
    there = list(dict.fromkeys(quant_tag(path) or path for path in models))
    raise NotFoundError(f"{where} has no {tag}", hint=f"it has {', '.join(there[:12])}: {_example(where, there[0])}")


def _example(where: str, tag_or_path: str) -> str:
    return f"liquid pull {where}{'/' if tag_or_path.endswith('.gguf') else ':'}{tag_or_path}"


def _tagged(tag: str, models: list[str]) -> str | None:
    pattern = re.compile(rf"(^|[./-]){re.escape(tag)}[.-]", re.IGNORECASE)
    found = (path for path in models if pattern.search(path) or quant_tag(path) == tag.upper())
    return min(found, key=lambda path: (len(path), path), default=None)


def _named(where: str, file: str, paths: list[str]) -> str:
    if file in paths:
        return file
    same_name = [path for path in paths if path.rsplit("/", 1)[-1] == file]
    if len(same_name) == 1:
        return same_name[0]
    there = ", ".join(model_files(paths)[:12]) or "no GGUF file"
    raise NotFoundError(f"{where} has no file {file}", hint=f"it has {there}")


def _complete(first: str, paths: list[str]) -> list[str]:
    wanted = shards(first)
    if missing := [path for path in wanted if path not in paths]:
        raise NotFoundError(f"{first} is split and its part {missing[0]} is missing")
    return wanted
