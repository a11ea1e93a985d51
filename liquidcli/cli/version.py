"""`liquid --version`: which parts are installed.

Reads package metadata and the build stamp beside the library; loads no native code.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from .. import __version__


def version_text() -> str:
    lines = [f"liquid {__version__}", f"llama-cpp-python {llama_cpp_version() or 'not installed'}"]
    stamp = build_stamp()
    return "\n".join([*lines, *([f"build {stamp}"] if stamp else [])])


def build_stamp() -> str | None:
    """What our build wrote beside the bindings; None for a stock build."""
    found = importlib.util.find_spec("llama_cpp")
    for folder in (found.submodule_search_locations or []) if found else []:
        stamp = Path(folder) / "_liquid_stamp.py"
        if stamp.is_file() and (match := re.search(r'^STAMP = "([^"]+)"', stamp.read_text(encoding="utf-8"), re.M)):
            return match[1]
    return None


def llama_cpp_version() -> str | None:
    try:
        return metadata.version("llama_cpp_python")
    except metadata.PackageNotFoundError:
        return None
