"""Gate packs: made by `train`, carried by `pack`, joined to a base by `apply`, told by `show`.

Knows which packs come with the package. Heavy imports stay in the modules.
"""

from __future__ import annotations

from pathlib import Path

_PACKS = Path(__file__).parent / "packs"


def builtin_pack_for(sha256: str) -> Path | None:
    """The pack that comes with the package for a base, named by its file's sha256 or its norms' identity hash."""
    import json

    index = _PACKS / "index.json"
    rows = json.loads(index.read_text())["packs"] if index.is_file() else []
    for row in rows:
        if sha256 == row["norms_sha256"] or sha256 in row["base_sha256"]:
            return _PACKS / row["pack"]
    return None
