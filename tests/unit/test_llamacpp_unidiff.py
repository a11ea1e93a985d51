"""The strict patch applier: what fits exactly is applied, everything else is refused by name and place."""

from __future__ import annotations

from pathlib import Path

import pytest
from liquidbuild import BuildError, unidiff

from tests.llamacpp_home import HOOK

TEXT = "".join(f"line {number}\n" for number in range(1, 21))
PATH = "vendor/llama.cpp/src/list.txt"


def patch_of(hunks: str, path: str = "f.txt", message: str = "Subject\n\nBody.\n\n") -> str:
    return f"{message}diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n{hunks}"


def apply(tmp_path: Path, hunks: str, text: str = TEXT, relocate: bool = False) -> str:
    (tmp_path / "f.txt").write_bytes(text.encode())
    unidiff.apply(unidiff.parse("p.patch", patch_of(hunks)), tmp_path, relocate)
    return (tmp_path / "f.txt").read_bytes().decode()


def refused(tmp_path: Path, hunks: str, text: str = TEXT, relocate: bool = False) -> str:
    with pytest.raises(BuildError) as caught:
        apply(tmp_path, hunks, text, relocate)
    if (tmp_path / "f.txt").exists():
        assert (tmp_path / "f.txt").read_bytes().decode() == text
    return str(caught.value)


def test_two_hunks_count_the_lines_added_before_them(tmp_path: Path) -> None:
    first, second = "@@ -3,2 +3,4 @@\n line 3\n+a\n+b\n line 4\n", "@@ -10,3 +12,2 @@\n line 10\n-line 11\n line 12\n"
    result = apply(tmp_path, first + second)
    assert result == TEXT.replace("line 3\n", "line 3\na\nb\n").replace("line 11\n", "")


def test_a_single_context_line_is_enough(tmp_path: Path) -> None:
    assert apply(tmp_path, "@@ -20 +20,2 @@\n line 20\n+after\n") == TEXT + "after\n"


def test_carriage_returns_and_missing_last_newline_survive(tmp_path: Path) -> None:
    assert apply(tmp_path, "@@ -1 +1,2 @@\n a\r\n+b\r\n", "a\r\nlast") == "a\r\nb\r\nlast"


def test_other_context_is_refused_with_patch_file_and_line(tmp_path: Path) -> None:
    message = refused(tmp_path, "@@ -3,2 +3,3 @@\n line 3\n+a\n line four\n")
    assert message.startswith("p.patch: f.txt:3: ") and "does not have the lines" in message


def test_trailing_space_in_context_is_a_difference(tmp_path: Path) -> None:
    refused(tmp_path, "@@ -3,2 +3,3 @@\n line 3 \n+a\n line 4\n")


def test_an_offset_is_refused(tmp_path: Path) -> None:
    assert "does not have the lines" in refused(tmp_path, "@@ -4,2 +4,3 @@\n line 3\n+a\n line 4\n")


def test_a_patch_applied_twice_says_so(tmp_path: Path) -> None:
    hunks = "@@ -3,2 +3,3 @@\n line 3\n+a\n line 4\n"
    assert "already applied" in refused(tmp_path, hunks, apply(tmp_path, hunks))


def test_a_hunk_past_the_end_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "@@ -30,2 +30,3 @@\n line 3\n+a\n line 4\n")


def test_relocate_finds_the_only_place(tmp_path: Path) -> None:
    hunks = "@@ -4,2 +4,3 @@\n line 3\n+a\n line 4\n@@ -15,2 +16,3 @@\n line 15\n+b\n line 16\n"
    moved = apply(tmp_path, hunks, relocate=True)
    assert moved == TEXT.replace("line 3\n", "line 3\na\n").replace("line 15\n", "line 15\nb\n")


@pytest.mark.parametrize("lines", ["brace\n" * 3, "none\n"])
def test_relocate_never_guesses(tmp_path: Path, lines: str) -> None:
    assert "by hand" in refused(tmp_path, "@@ -9 +9,2 @@\n brace\n+a\n", "x\n" + lines, relocate=True)


def test_hunks_out_of_order_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "@@ -10,2 +10,3 @@\n line 10\n+a\n line 11\n@@ -3,2 +4,3 @@\n line 3\n+b\n line 4\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"p.patch: {PATH}: no such file"):
        unidiff.apply(unidiff.parse("p.patch", HOOK), tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text(TEXT)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f.txt").symlink_to(outside)
    with pytest.raises(BuildError, match="no such file in the tree"):
        unidiff.apply(unidiff.parse("p", patch_of("@@ -3,2 +3,3 @@\n line 3\n+a\n line 4\n")), tree)
    assert outside.read_text() == TEXT


def test_one_bad_file_leaves_the_others_untouched(tmp_path: Path) -> None:
    good = patch_of("@@ -3,2 +3,3 @@\n line 3\n+a\n line 4\n", "good.txt")
    bad = patch_of("@@ -3,2 +3,3 @@\n line 3\n+a\n line 5\n", "bad.txt", message="")
    for name in ("good.txt", "bad.txt"):
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(BuildError, match=r"bad\.txt:3"):
        unidiff.apply(unidiff.parse("p.patch", good + bad), tmp_path)
    assert (tmp_path / "good.txt").read_text() == TEXT


@pytest.mark.parametrize("path", ["../out.txt", "/etc/out.txt", "a/../../out.txt", ".git/hooks/x", "a/./b", "a\\b"])
def test_paths_outside_the_tree_are_refused(path: str) -> None:
    with pytest.raises(BuildError, match="inside the tree"):
        unidiff.parse("p.patch", patch_of("@@ -1 +1,2 @@\n a\n+b\n", path))


GOOD = "@@ -3,2 +3,3 @@\n line 3\n+a\n line 4\n"
MALFORMED = {
    "no reason": patch_of(GOOD, message=""),
    "nothing to apply": "Subject\n\nBody.\n",
    "no hunk": patch_of(""),
    "new file": patch_of(GOOD).replace("--- a/f.txt", "--- /dev/null"),
    "created": patch_of(GOOD).replace("--- a/f.txt", "new file mode 100644\n--- /dev/null"),
    "mode": patch_of(GOOD).replace("--- a/f.txt", "old mode 100644\nnew mode 100755\n--- a/f.txt"),
    "rename": patch_of(GOOD).replace("b/f.txt\n---", "b/g.txt\n---"),
    "function text": patch_of(GOOD.replace("@@\n", "@@ int main()\n")),
    "short hunk": patch_of(GOOD.replace(" line 4\n", "")),
    "long hunk": patch_of(GOOD + "+more\n"),
    "no context": patch_of("@@ -0,0 +1 @@\n+a\n"),
    "no newline": patch_of(GOOD + "\\ No newline at end of file\n"),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_patches_are_refused(text: str) -> None:
    with pytest.raises(BuildError, match=r"^p\.patch"):
        unidiff.parse("p.patch", text)
