"""Builds the patched llama-cpp-python from the pinned archive, our patches and our sources.

Knows: the pin, the archive, the patch series, the prepared tree, the wheel. Does not know: what the patches are for.
Standard library only, so that it runs in any build environment; Python 3.9 or newer.
"""


class BuildError(Exception):
    """What stops a build, in one sentence a person can act on."""
