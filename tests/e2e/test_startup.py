"""What a command does not do before its work: nothing is imported that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Liquid
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

NOT_FOR_RUN = (
    "pydantic", "jinja2", "yaml", "diskcache", "rich", "prompt_toolkit", "torch", "gguf.metadata", "llama_cpp.llama",
    "llama_cpp.llama_chat_format", "liquidcli.cli.bench", "liquidcli.cli.chat", "liquidcli.gates.training.train",
)  # fmt: skip
CODE = """
import atexit, sys
atexit.register(lambda: print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr))
sys.argv = {line!r}
from liquidcli.cli.app import main
main()
"""


@pytest.mark.parametrize("options", [(), ("-t", "1", "--temp", "0", "-n", "2", "--json")])
def test_an_answer_needs_few_packages(tmp_path: Path, options: tuple[str, ...]) -> None:
    model = write_gguf(make_model("linear"), tmp_path / "chat.gguf", chat_template="{{ messages[0].content }}")
    line = ["liquid", "run", "-m", str(model), "hello", "-n", "8", "--seed", "1", *options]
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=NOT_FOR_RUN, line=line)], capture_output=True, text=True, timeout=120,
        env=Liquid(tmp_path, {}).environment(), check=True,
    )  # fmt: skip
    assert result.stdout and result.stderr.strip() == ""
