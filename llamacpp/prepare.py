#!/usr/bin/env python3
"""Makes the patched source tree: `prepare.py --out DIR`; with `--worktree` a git repository to edit it in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liquidbuild import BuildError, tree, worktree
from liquidbuild.pin import read_pin


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch, verify, unpack and patch the pinned archive.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the tree to make or to renew")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="the archive, already downloaded")
    parser.add_argument("--worktree", action="store_true",
                        help="a git repository, one commit a patch, src/ linked in; if it exists, links and stamp anew")
    parser.add_argument("--relocate", action="store_true",
                        help="with --worktree, after a version bump: find moved hunks if their place is unambiguous")
    chosen = parser.parse_args(arguments)
    if chosen.relocate and not chosen.worktree:
        parser.error("--relocate needs --worktree")
    try:
        pin, out = read_pin(), chosen.out.absolute()
        if chosen.worktree:
            stamp = worktree.make(pin, out, chosen.archive, relocate=chosen.relocate)
        else:
            stamp = tree.prepare(pin, out, chosen.archive)
    except BuildError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {pin.project} {pin.full_version}, stamp {stamp}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
