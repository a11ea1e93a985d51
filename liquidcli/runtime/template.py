"""Chat templates: messages to the text a model was trained on.

Knows where a template comes from and how to have it rendered safely. Does not know tokens; `prompt` makes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from ..errors import LiquidError, UsageError

if TYPE_CHECKING:
    from ..llama.model import Model

Message = dict[str, str]  # {"role", "content"}
MAX_TEMPLATE_CHARS = 1 << 19
MAX_TEXT_CHARS = 1 << 24
RENDER_SECONDS = 5.0
_KEPT_VARIABLES = ("SYSTEMROOT", "TZ")
_WORKER = Path(__file__).with_name("template_worker.py")


class ChatFormat(Protocol):
    """What a conversation needs of a template."""

    is_chat: bool
    source: str  # the template's own text, empty when it is not ours to see
    variables: dict[str, Any]  # what the user tells the template, like enable_thinking

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str: ...

    def close(self) -> None: ...


@dataclass
class JinjaFormat:
    """A Jinja template, rendered by a confined process that lives as long as this object."""

    source: str
    bos_token: str = ""
    eos_token: str = ""
    is_given: bool = False  # by the user, instead of the model's own
    is_chat: bool = True
    variables: dict[str, Any] = field(default_factory=dict)
    _worker: Worker = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_TEMPLATE_CHARS:
            raise LiquidError(
                f"the chat template has {len(self.source)} characters, at most {MAX_TEMPLATE_CHARS} are read"
            )
        self._worker = Worker()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """LiquidError, in one sentence, when the template fails; if it knows no system role, that prompt is merged."""
        try:
            return self._render(list(messages), add_generation_prompt)
        except LiquidError:
            if not messages or messages[0]["role"] != "system" or len(messages) < 2:
                raise
            return self._render(_merged_system(messages), add_generation_prompt)

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        context = self.variables | {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "tools": None,
            "documents": None,
        }
        reply = self._worker.ask({"template": self.source, "context": context, "max_chars": MAX_TEXT_CHARS})
        if "error" in reply:
            raise self._failed(reply["error"])
        return reply["text"]

    def _failed(self, reason: str) -> LiquidError:
        if self.is_given:
            hint = "mend it, or leave --chat-template away: the model's own is taken then, if it has one"
            return UsageError(f"the chat template that was given failed: {reason}", hint=hint)
        hint = "--chat-template chatml takes another one, -no-cnv goes without"
        return LiquidError(f"the chat template of this model failed: {reason}", hint=hint)

    def close(self) -> None:
        self._worker.close()


@dataclass
class BuiltinFormat:
    """One of llama.cpp's own formats, by its name."""

    model: Model
    name: str
    source: str = ""
    is_chat: bool = True
    variables: dict[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        text = self.model.builtin_template(self.name, list(messages), add_generation_prompt)
        if text is None:
            raise UsageError(
                f"llama.cpp has no chat template named {self.name!r}", hint="chatml, llama3, llama2, gemma ..."
            )
        return text

    def close(self) -> None:
        pass


@dataclass
class PlainFormat:
    """No template: what was said, in order, for the model to go on with."""

    source: str = ""
    is_chat: bool = False
    variables: dict[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return "\n".join(message["content"] for message in messages)

    def close(self) -> None:
        pass


def chat_format(model: Model, template: str | None, wanted: str | None = None, *, plain: bool = False) -> ChatFormat:
    """`wanted`: a Jinja template or a name llama.cpp knows; else the model's own `template`; else plain text."""
    source = wanted or template
    if plain or not source:
        return PlainFormat()
    if wanted and not {"{{", "{%"} & {wanted[i : i + 2] for i in range(len(wanted))}:
        found = BuiltinFormat(model, wanted.strip())
        found.render([{"role": "user", "content": "?"}])
        return found
    return JinjaFormat(source, _text(model, model.bos), _text(model, model.eos), is_given=bool(wanted))


class Worker:
    """The confined process; one question at a time, and an end to it when the answer takes too long."""

    def __init__(self) -> None:
        self._replies: queue.Queue[str] = queue.Queue()
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            encoding="utf-8", env=environment, start_new_session=True,
        )  # fmt: skip
        self._stdin, self._stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self._stdout:
                self._replies.put(line)
        self._replies.put("")

    def ask(self, request: dict) -> dict[str, str]:
        try:
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
            line = self._replies.get(timeout=RENDER_SECONDS)
        except queue.Empty:
            self.close()
            return {"error": f"it takes longer than {RENDER_SECONDS:g} s"}
        except (OSError, ValueError):
            line = ""
        if not line:
            self.close()
            return {"error": "the process that renders it ended early"}
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()
        self._process.wait()


def _merged_system(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system role: its words go in front of the first ones said."""
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _text(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""
