"""What every tracked file must keep to: no addresses of registries, no paths of one machine, no dead links."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = re.compile("|".join([r"py" r"pi\.org", r"python" r"hosted", r"registry\." r"npmjs", r"download\.py" r"torch",
                                r"deb\." r"debian\.org", r"conda\." r"anaconda"]))
MACHINE_PATH = re.compile(r"(?<![\w./$}~-])/(?:work|opt|root|home)/")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
MAKE = re.compile(r"\bmake ([a-z]+)\b")


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file() and not path.is_symlink()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked():
        text = path.read_bytes()
        if b"\0" in text:
            continue
        for number, line in enumerate(text.decode("utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_no_file_names_a_registry_host() -> None:
    assert not lines_with(REGISTRY)


def test_no_file_names_a_path_of_one_machine() -> None:
    assert not lines_with(MACHINE_PATH)


def test_links_between_documents_lead_somewhere() -> None:
    dead = [f"{path.relative_to(ROOT)}: {link}" for path in tracked() if path.suffix == ".md"
            for link in LINK.findall(path.read_text(encoding="utf-8"))
            if "://" not in link and not link.startswith("mailto:") and not (path.parent / link).exists()]
    assert not dead


def test_documents_name_make_verbs_that_exist() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    told = {verb for name in ("README.md", "CONTRIBUTING.md", "llamacpp/README.md") if (ROOT / name).exists()
            for code in re.findall(r"`[^`]+`|```.*?```", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
            for verb in MAKE.findall(code)}
    assert told <= verbs
