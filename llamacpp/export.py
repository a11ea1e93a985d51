#!/usr/bin/env python3
"""Writes patches/ anew from a work tree: `export.py DIR`, where DIR was made by `prepare.py --out DIR --worktree`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liquidbuild import BuildError, worktree


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Regenerate patches/ from the commits of a work tree.")
    parser.add_argument("tree", type=Path, metavar="DIR")
    parser.add_argument("--drop", action="append", default=[], metavar="PATCH",
                        help="a patch that has no commit in the work tree any more and may go")
    chosen = parser.parse_args(arguments)
    try:
        names = worktree.export(chosen.tree.absolute(), drop=tuple(chosen.drop))
    except BuildError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
