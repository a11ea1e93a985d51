"""A package that is put off: its submodules come alone, and it is what it always was once somebody asks for more."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from liquidcli.lazy_package import put_off


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> str:
    folder = tmp_path / "heavy_one"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .constants import *\nfrom .work import answer\nVERSION = '1'\n")
    (folder / "constants.py").write_text("RED = 1\n")
    (folder / "work.py").write_text("def answer():\n    return 42\n")
    (folder / "aside.py").write_text("from .constants import RED\n")
    (tmp_path / "broken_one").mkdir()
    (tmp_path / "broken_one" / "__init__.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "heavy_one"
    for name in [name for name in sys.modules if name.startswith(("heavy_one", "broken_one"))]:
        del sys.modules[name]


def test_a_submodule_comes_without_the_rest(package: str) -> None:
    put_off(package, "constants")
    from heavy_one import RED, aside

    assert RED == aside.RED == 1 and "heavy_one.work" not in sys.modules


def test_what_only_the_package_has_makes_it_whole(package: str) -> None:
    put_off(package, "constants")
    import heavy_one
    import heavy_one.aside

    assert heavy_one.answer() == 42 and heavy_one.VERSION == "1" and heavy_one.RED == 1 and heavy_one.aside.RED == 1
    with pytest.raises(AttributeError):
        heavy_one.nothing  # noqa: B018
    assert importlib.import_module(package) is heavy_one


def test_a_submodule_that_asks_for_the_package_as_it_begins_leaves_nothing_out(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "work.py").write_text("import heavy_one\nheavy_one.VERSION\ndef answer():\n    return 42\n")
    (tmp_path / package / "__init__.py").write_text("VERSION = '1'\nfrom .work import *\n")
    put_off(package, "constants")
    import heavy_one.work

    assert heavy_one.answer() == heavy_one.work.answer() == 42
    with pytest.raises(AttributeError):
        heavy_one.nothing  # noqa: B018


def test_all_of_it_can_be_imported_by_a_star(package: str) -> None:
    put_off(package)
    found: dict = {}
    exec("from heavy_one import *", found)
    assert found["VERSION"] == "1" and found["answer"]() == 42


def test_a_package_that_is_absent_loaded_or_broken_fails_as_ever(package: str) -> None:
    put_off("no_package_of_this_name")
    with pytest.raises(ModuleNotFoundError):
        import no_package_of_this_name  # noqa: F401
    put_off("broken_one")
    import broken_one

    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        broken_one.anything  # noqa: B018
    assert "broken_one" not in sys.modules
    whole = importlib.import_module(package)
    put_off(package)
    assert sys.modules[package] is whole
