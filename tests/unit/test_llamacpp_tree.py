"""The prepared tree is whole or not there; the work tree and the patches say the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from liquidbuild import BuildError, series, tree, worktree

from tests.llamacpp_home import FILES, HOOK, Home, make_home

LIST = "vendor/llama.cpp/src/list.txt"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


def prepare(home: Home, out: Path) -> str:
    return tree.prepare(home.pin, out, home.archive, home.folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_prepared_tree_holds_patches_sources_version_and_stamp(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stamp = prepare(home, out)
    assert (out / LIST).read_text() == FILES[LIST].replace("line 3\n", "line 3\nhook\n")
    assert (out / "vendor/llama.cpp/src/models/liquid.cpp").read_text() == "int model;\n"
    assert f'#define LIQUID_BUILD_STAMP "{stamp}"' in (out / "vendor/llama.cpp/src/liquid-stamp.h").read_text()
    assert '__version__ = "1.2.3+liquid.7"' in (out / "llama_cpp/__init__.py").read_text()
    names: dict[str, str] = {}
    exec((out / "llama_cpp/_liquid_stamp.py").read_text(), names)
    assert (names["STAMP"], names["VERSION"]) == (stamp, "1.2.3+liquid.7")


def test_preparing_again_changes_nothing(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(home, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    first = contents(out)
    prepare(home, out)
    assert contents(out) == first
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in before if after[path] != before[path]} <= {tree.MARKER}


def test_a_changed_source_and_a_patch_taken_back_get_new_times(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(home, out)
    for path in out.rglob("*"):
        if path.is_file():
            os.utime(path, (1_700_000_000, 1_700_000_000))
    (home.folder / "src" / "liquid-depth.cpp").write_text("int other;\n")
    (home.folder / "patches" / "0001-hook-the-fourth-line.patch").unlink()
    (home.folder / "patches" / "series").write_text("")
    prepare(home, out)
    assert (out / LIST).read_text() == FILES[LIST] and (out / LIST).stat().st_mtime > 1_700_000_000
    assert (out / "vendor/llama.cpp/src/liquid-depth.cpp").stat().st_mtime > 1_700_000_000
    assert (out / "vendor/llama.cpp/src/models/liquid.cpp").stat().st_mtime == 1_700_000_000


def test_a_patch_that_does_not_fit_names_the_pin_and_leaves_the_old_tree(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(home, out)
    before = contents(out)
    home.add_patch("0002-second.patch", HOOK.replace(" line 4\n", " line 5\n"))
    with pytest.raises(BuildError) as caught:
        prepare(home, out)
    assert all(word in str(caught.value) for word in ("0002-second.patch", LIST, "up_stream-1.2.3.tar.gz", "abc123"))
    assert contents(out) == before and not list(tmp_path.glob("*.part"))


def test_a_failed_first_run_leaves_nothing(home: Home, tmp_path: Path) -> None:
    home.archive.write_bytes(b"other")
    with pytest.raises(BuildError):
        prepare(home, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))


def test_a_folder_of_somebody_else_is_never_replaced(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(BuildError, match="not a tree made by"):
        prepare(home, out)
    assert (out / "thesis.txt").read_text() == "precious"
    with pytest.raises(BuildError, match="not a tree made by"):
        prepare(home, out / "thesis.txt")


def test_a_source_never_takes_the_place_of_a_file_of_upstream(home: Home, tmp_path: Path) -> None:
    (home.folder / "src" / "models" / "other.cpp").write_text("int mine;\n")
    with pytest.raises(BuildError, match=r"upstream has a file .*models/other\.cpp"):
        prepare(home, tmp_path / "out")


def test_another_version_line_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / tree.INIT).write_text('__version__ = "9.9"\n')
    with pytest.raises(BuildError, match="__version__"):
        tree.set_version(tmp_path, home.pin)


@needs_git
def test_export_of_a_work_tree_is_the_committed_series(home: Home, tmp_path: Path) -> None:
    hunks = "@@ -1,3 +1,2 @@\n line 1\n-line 2\n line 3\n@@ -9,2 +8,3 @@\n line 8\n+second\n line 9\n"
    second = HOOK.replace("Hook the fourth line", "Two places, at once!").partition("@@")[0] + hunks
    home.add_patch("0002-two-places-at-once.patch", second)
    before = contents(home.folder / "patches")
    before["series"] = worktree.HEADER.encode() + b"0001-hook-the-fourth-line.patch\n0002-two-places-at-once.patch\n"
    out = tmp_path / "work"
    worktree.make(home.pin, out, home.archive, home.folder)
    worktree.export(out, home.folder / "patches")
    assert contents(home.folder / "patches") == before


@needs_git
def test_a_commit_becomes_a_patch_and_the_tree_is_reproduced(home: Home, tmp_path: Path) -> None:
    out, other = tmp_path / "work", tmp_path / "out"
    worktree.make(home.pin, out, home.archive, home.folder)
    path = out / LIST
    path.write_text(path.read_text().replace("line 15\n", "line 15\nfifteen and a half\n"))
    with pytest.raises(BuildError, match="commit this first"):
        worktree.export(out, home.folder / "patches")
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "Add a half\n\nIts reason."]
    subprocess.run(commit, cwd=out, check=True)
    assert worktree.export(out, home.folder / "patches")[1:] == ["0002-add-a-half.patch"]
    prepare(home, other)
    assert (other / LIST).read_text() == path.read_text()


@needs_git
def test_a_work_tree_is_kept_and_its_links_are_renewed(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "work"
    worktree.make(home.pin, out, home.archive, home.folder)
    (home.folder / "src" / "liquid-new.cpp").write_text("int fresh;\n")
    (home.folder / "src" / "liquid-depth.cpp").unlink()
    stamp = worktree.make(home.pin, out, home.archive, home.folder)
    assert (out / "vendor/llama.cpp/src/liquid-new.cpp").is_symlink() and stamp == series.stamp(home.pin, home.folder)
    assert not (out / "vendor/llama.cpp/src/liquid-depth.cpp").is_symlink()
    with pytest.raises(BuildError, match="work tree"):
        prepare(home, out)
    assert worktree.export(out, home.folder / "patches") == ["0001-hook-the-fourth-line.patch"]


@needs_git
def test_export_refuses_a_folder_inside_another_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(BuildError):
        worktree.export(inner, tmp_path / "patches")


@needs_git
def test_export_drops_no_patch_that_the_work_tree_never_had(home: Home, tmp_path: Path) -> None:
    out, patches = tmp_path / "work", home.folder / "patches"
    worktree.make(home.pin, out, home.archive, home.folder)
    second = HOOK.replace("Hook the fourth line", "From somebody else").replace("hook", "other")
    home.add_patch("0002-from-somebody-else.patch", second)
    before = contents(patches)
    with pytest.raises(BuildError, match="--drop 0002-from-somebody-else"):
        worktree.export(out, patches)
    assert contents(patches) == before
    assert len(worktree.export(out, patches, drop=("0002-from-somebody-else.patch",))) == 1
    assert not (patches / "0002-from-somebody-else.patch").exists()
