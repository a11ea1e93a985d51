"""The pin, the committed patch series and the stamp over what is ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from liquidbuild import BuildError, pin, series, unidiff

from tests.llamacpp_home import HOOK, LLAMACPP, ROOT, make_home

PATCHES = series.read_patches(LLAMACPP / "patches")


def test_the_version_is_the_one_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"llama-cpp-python=={pin.read_pin().full_version}" in project["dependencies"]
    assert pin.read_pin().full_version == "0.3.36+liquid.1"


def test_the_loader_expects_the_pinned_archive() -> None:
    from liquidcli.llama.library import PIN

    assert pin.read_pin().sha256.startswith(PIN) and len(PIN) == 12


def test_every_patch_is_in_the_series_and_touches_upstream_files_only() -> None:
    ours = set(series.sources(LLAMACPP / "src"))
    assert [patch.name for patch in PATCHES] == sorted(path.name for path in (LLAMACPP / "patches").glob("*.patch"))
    assert not {file.path for patch in PATCHES for file in patch.files} & ours


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_patch_says_why_and_carries_little_of_upstream(patch: unidiff.Patch) -> None:
    subject, _, body = patch.message.partition("\n\n")
    assert "\n" not in subject and len(body) > 40
    diff = (LLAMACPP / "patches" / patch.name).read_text().partition("\ndiff --git")[2]
    assert "   " not in "".join(line[:1] for line in diff.splitlines()), "more than one line of context on a side"


@pytest.mark.parametrize("line", ["sha256 = ABC", "version = 2", "colour = red", "version", "version ="])
def test_a_broken_pin_names_file_and_line(tmp_path: Path, line: str) -> None:
    home = make_home(tmp_path / "home")
    path = home.folder / "UPSTREAM"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BuildError, match=r"^UPSTREAM:8"):
        pin.read_pin(path)


def test_an_incomplete_pin_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "UPSTREAM").write_text("project = a\nversion = 1\n")
    with pytest.raises(BuildError, match="archive, sha256, commit, liquid missing"):
        pin.read_pin(tmp_path / "UPSTREAM")


def test_a_patch_outside_the_series_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    folder = make_home(tmp_path / "home").folder / "patches"
    (folder / "0002-stray.patch").write_text(HOOK)
    with pytest.raises(BuildError, match="0002-stray"):
        series.read_series(folder)
    (folder / "0002-stray.patch").unlink()
    (folder / "0001-hook-the-fourth-line.patch").unlink()
    with pytest.raises(BuildError, match="which is not there"):
        series.read_series(folder)


def test_sources_know_their_places(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    assert set(series.sources(home.folder / "src")) == {
        "vendor/llama.cpp/include/liquid.h", "vendor/llama.cpp/src/liquid-depth.cpp",
        "vendor/llama.cpp/src/models/liquid.cpp",
    }
    (home.folder / "src" / "notes.md").write_text("x")
    with pytest.raises(BuildError, match=r"src/notes\.md"):
        series.sources(home.folder / "src")


def test_the_stamp_is_a_function_of_content_alone(tmp_path: Path) -> None:
    first, second = make_home(tmp_path / "a" / "home"), make_home(tmp_path / "b" / "home")
    stamp = series.stamp(first.pin, first.folder)
    assert stamp == series.stamp(first.pin, second.folder)
    assert stamp.startswith(first.pin.sha256[:12] + "-") and len(stamp) == 25


def _edit_source(folder: Path) -> None:
    (folder / "src" / "liquid.h").write_text("// other\n")


def _rename_source(folder: Path) -> None:
    (folder / "src" / "liquid-depth.cpp").rename(folder / "src" / "liquid-width.cpp")


def _edit_patch(folder: Path) -> None:
    (folder / "patches" / "0001-hook-the-fourth-line.patch").write_text(HOOK.replace("+hook", "+other"))


def _move_text_between_files(folder: Path) -> None:
    (folder / "src" / "liquid-depth.cpp").write_text("int ")
    (folder / "src" / "liquid.h").write_text("depth;\n// header\n")


@pytest.mark.parametrize("edit", [_edit_source, _rename_source, _edit_patch, _move_text_between_files])
def test_every_change_of_ours_changes_the_stamp(tmp_path: Path, edit) -> None:
    home = make_home(tmp_path / "home")
    before = series.stamp(home.pin, home.folder)
    edit(home.folder)
    assert series.stamp(home.pin, home.folder) != before
