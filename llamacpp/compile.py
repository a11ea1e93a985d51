#!/usr/bin/env python3
"""Compiles once, keeps the result and prints its path: `compile.py wheel` or `compile.py oracle`."""

from __future__ import annotations

import argparse
import sys

from liquidbuild import BuildError, kept
from liquidbuild.pin import read_pin

MAKERS = {"wheel": kept.wheel, "oracle": kept.oracle}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the patched wheel, or the unpatched library and its tools.")
    parser.add_argument("what", choices=MAKERS)
    chosen = parser.parse_args(arguments)
    try:
        print(MAKERS[chosen.what](read_pin()))
    except (BuildError, OSError) as error:
        print(f"compile.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
