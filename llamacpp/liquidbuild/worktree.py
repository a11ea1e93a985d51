"""The work tree: a scratch git repository with one commit a patch, and the way back. Knows git; the build does not."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from . import BuildError, archive, series, tree, unidiff
from .pin import HOME, Pin

BASE = "refs/tags/upstream"
HEADER = "# Patches in the order they apply, one file name a line. Written by export.py.\n"


def make(pin: Pin, out: Path, source: Path | None = None, home: Path = HOME, relocate: bool = False) -> str:
    """A repository in `out`: upstream as its first commit, then the series; our files are links to src/.

    In a work tree that is there already only the links and the stamp are renewed.
    """
    if marker := tree.read_marker(out):
        if marker["pristine"]:
            raise BuildError(f"{out}: a prepared tree, not a work tree; name another folder")
        return _link(pin, out, home, marker["touched"])
    patches = series.read_patches(home / "patches")
    archive.unpack(archive.obtain(pin, source), pin, out)
    tree.set_version(out, pin)
    _git(out, "init", "--quiet")
    _commit(out, f"{pin.archive}\n\nllama.cpp {pin.commit}", force=True)
    _git(out, "tag", "upstream")
    for patch in patches:
        tree.apply_all(pin, out, [patch], relocate)
        _commit(out, patch.message)
    return _link(pin, out, home, [])


def _link(pin: Pin, out: Path, home: Path, old: list[str]) -> str:
    """Links our files in, hides them from git and writes the stamp."""
    for name in old:
        (out / name).unlink(missing_ok=True)
    ours = tree.add_sources(out, home, link=True) + tree.write_stamp(out, pin, home)
    hidden = "".join(f"/{name}\n" for name in [tree.MARKER, *ours])
    (out / ".git" / "info" / "exclude").write_text(hidden, encoding="utf-8")
    stamp = series.stamp(pin, home)
    tree.write_marker(out, stamp, ours, pristine=False)
    return stamp


def export(out: Path, patches: Path = HOME / "patches", drop: tuple[str, ...] = ()) -> list[str]:
    """Writes patches/ anew from the commits after `upstream`; loses neither uncommitted changes nor others' patches."""
    if _git(out, "rev-parse", "--show-toplevel").strip() != str(out.resolve()):
        raise BuildError(f"{out}: not a work tree made by prepare.py --worktree")
    if dirty := _git(out, "status", "--porcelain"):
        raise BuildError(f"{out}: commit this first, one topic a commit: {dirty.splitlines()[0].strip()}")
    commits = _git(out, "rev-list", "--reverse", f"{BASE}..HEAD").split()
    texts = dict(_patch(out, number, commit) for number, commit in enumerate(commits, 1))
    subjects = {unidiff.parse(name, text).message.splitlines()[0] for name, text in texts.items()}
    for patch in series.read_patches(patches):
        if patch.message.splitlines()[0] not in subjects and patch.name not in drop:
            raise BuildError(f"patches/{patch.name} has no commit in this work tree: `git apply` it there and commit "
                             f"it with its message, or let it go with --drop {patch.name}")
    for path in patches.glob("*.patch"):
        path.unlink()
    for name, text in texts.items():
        (patches / name).write_bytes(text.encode("utf-8"))
    (patches / "series").write_text(HEADER + "".join(f"{name}\n" for name in texts), encoding="utf-8")
    return list(texts)


def _patch(out: Path, number: int, commit: str) -> tuple[str, str]:
    """File name and text of one commit: its message, then a diff with one line of context and nothing else."""
    message = _git(out, "log", "-1", "--format=%B", commit).strip()
    diff = _git(out, "diff", "--no-ext-diff", "--no-renames", "--no-color", "--unified=1", "--inter-hunk-context=0",
                "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=histogram", f"{commit}~1", commit)
    diff = re.sub(r"^index .*\n", "", diff, flags=re.MULTILINE)
    diff = re.sub(r"^(@@ -\S+ \+\S+ @@).*$", r"\1", diff, flags=re.MULTILINE)
    slug = re.sub(r"[^a-z0-9]+", "-", message.splitlines()[0].lower()).strip("-")[:48].strip("-")
    return f"{number:04d}-{slug}.patch", f"{message}\n\n{diff}"


def _commit(out: Path, message: str, force: bool = False) -> None:
    _git(out, "add", "--all", *(["--force"] if force else []), ".")
    _git(out, "commit", "--quiet", "--no-verify", "--cleanup=verbatim", "--file=-", text=message + "\n")


def _git(out: Path, *arguments: str, text: str | None = None) -> str:
    """git in the tree's own repository, untouched by the caller's settings and by a repository around it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    env["GIT_CEILING_DIRECTORIES"] = str(out.parent)
    settings = ["-c", "user.name=liquid", "-c", "user.email=liquid@localhost", "-c", "core.autocrlf=false",
                "-c", "core.fileMode=true", "-c", "gc.auto=0", "-c", "core.quotePath=false"]
    done = subprocess.run(["git", *settings, *arguments], cwd=out, env=env, input=text, capture_output=True,
                          text=True, errors="surrogateescape", check=False)
    if done.returncode:
        raise BuildError(f"git {arguments[0]} in {out}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
