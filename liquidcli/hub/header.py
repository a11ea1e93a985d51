"""The metadata of a GGUF that is still elsewhere: its first megabytes, asked for by Range.

Knows that a header's length is unknown until it is read. Does not judge what it says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..errors import IntegrityError
from ..gguf_parse import MAGIC, read_shard
from .pull import PullPlan
from .transport import hub_errors, request_headers

_TRIED_BYTES = (1 << 20, 1 << 23, 1 << 25)  # most vocabularies fit in the second
_LIMIT_S = 20.0


def remote_metadata(plan: PullPlan) -> dict[str, Any] | None:
    """The keys of the plan's first file; None where they cannot be read, which is no reason not to fetch it."""
    from huggingface_hub import hf_hub_url

    file = plan.files[0]
    url = hf_hub_url(plan.repo_id, file.path, revision=plan.commit)
    with tempfile.TemporaryDirectory(prefix="liquid-") as folder, hub_errors(plan.repo_id):
        part = Path(folder) / "header.gguf"
        for n_bytes in _TRIED_BYTES:
            beginning = _beginning(url, min(n_bytes, file.size_bytes))
            if beginning[:4] != MAGIC:
                return None
            part.write_bytes(beginning)
            with part.open("r+b") as handle:
                handle.truncate(file.size_bytes)  # a hole where the tensors would be
            try:
                metadata = read_shard(part, 0).metadata
                return metadata if metadata.get("general.architecture") else None
            except IntegrityError:
                if n_bytes >= file.size_bytes:
                    return None
    return None


def _beginning(url: str, n_bytes: int) -> bytes:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    headers = {**request_headers(url), "Range": f"bytes=0-{n_bytes - 1}", "Accept-Encoding": "identity"}
    found = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=_LIMIT_S) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_raw():
            found += piece
            if len(found) >= n_bytes:  # a server that ignores the Range
                break
    return bytes(found[:n_bytes])
