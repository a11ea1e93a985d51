"""`liquid --version`: which parts are installed.

Reads package metadata and the build stamp beside the library; loads no native code.
"""

from __future__ import annotations

from importlib import metadata

from .. import __version__


def version_text() -> str:
    return f"liquid {__version__}\nllama-cpp-python {llama_cpp_version() or 'not installed'}"


def llama_cpp_version() -> str | None:
    try:
        return metadata.version("llama_cpp_python")
    except metadata.PackageNotFoundError:
        return None
