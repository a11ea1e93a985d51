"""Fetching and unpacking: bytes are checked before they are used, members stay inside the tree."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from liquidbuild import BuildError, archive

from tests.llamacpp_home import ARCHIVE_ROOT, FILES, make_home, member, write_archive


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and pip out of reach."""
    def no_pip(pin: object, folder: Path) -> None:
        raise BuildError("pip was asked")

    monkeypatch.setattr(archive, "_pip_download", no_pip)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(archive.ENV_ARCHIVE, raising=False)
    return tmp_path / "cache" / "liquid" / "upstream"


def test_a_wrong_hash_names_both_hashes(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    home.archive.write_bytes(home.archive.read_bytes() + b"x")
    with pytest.raises(BuildError) as caught:
        archive.obtain(home.pin, home.archive)
    assert home.pin.sha256 in str(caught.value) and archive.sha256_of(home.archive) in str(caught.value)


def test_a_missing_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such file"):
        archive.obtain(make_home(tmp_path / "home").pin, tmp_path / "gone.tar.gz")


def test_the_environment_names_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path / "home")
    monkeypatch.setenv(archive.ENV_ARCHIVE, str(home.archive))
    assert archive.obtain(home.pin) == home.archive
    home.archive.write_bytes(b"other")
    with pytest.raises(BuildError, match="sha256"):
        archive.obtain(home.pin)


def test_a_damaged_cache_is_fetched_anew(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path / "home")
    monkeypatch.setattr(archive, "_pip_download",
                        lambda pin, folder: (folder / pin.archive).write_bytes(home.archive.read_bytes()))
    cache.mkdir(parents=True)
    (cache / home.pin.archive).write_bytes(b"half an archive")
    path = archive.obtain(home.pin)
    assert path == cache / home.pin.archive and archive.sha256_of(path) == home.pin.sha256
    assert list(cache.iterdir()) == [path]


def test_a_download_with_other_bytes_never_reaches_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home")
    monkeypatch.setattr(archive, "_pip_download", lambda pin, folder: (folder / pin.archive).write_bytes(b"evil"))
    with pytest.raises(BuildError, match="sha256"):
        archive.obtain(home.pin)
    assert not list(cache.iterdir())


def test_unpack_keeps_bytes_times_and_the_executable_bit_and_drops_git(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    out = tmp_path / "tree"
    archive.unpack(home.archive, home.pin, out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {name for name in FILES if ".git" not in name}
    assert all((out / name).read_text() == FILES[name] for name in names)
    assert (out / "tool.sh").stat().st_mode & 0o111 and (out / "tool.sh").stat().st_mtime == 1_600_000_000


BAD_MEMBERS = {
    "parent": member(f"{ARCHIVE_ROOT}/../../out", "x"),
    "absolute": member("/etc/out", "x"),
    "other root": member("elsewhere/out", "x"),
    "backslash": member(f"{ARCHIVE_ROOT}\\..\\out", "x"),
    "symlink": member(f"{ARCHIVE_ROOT}/link", "../../out", kind=tarfile.SYMTYPE),
    "hard link": member(f"{ARCHIVE_ROOT}/link", "/etc/passwd", kind=tarfile.LNKTYPE),
    "device": member(f"{ARCHIVE_ROOT}/pipe", kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("bad", BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_members_that_are_not_plain_files_inside_are_refused(
    tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]
) -> None:
    home = make_home(tmp_path / "home")
    path = tmp_path / "bad.tar.gz"
    write_archive(path, [member(f"{ARCHIVE_ROOT}/good", "x"), bad])
    with pytest.raises(BuildError, match="archive member"):
        archive.unpack(path, home.pin, tmp_path / "tree")
    assert {entry.name for entry in (tmp_path / "tree").rglob("*")} <= {"good"}
