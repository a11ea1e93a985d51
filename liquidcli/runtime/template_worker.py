"""A process that renders chat templates and can do nothing else: run as a script, one JSON request and reply per line.

A template comes from a model file, so it is rendered in Jinja's immutable sandbox, in a process that may not open
files, start others or grow. Knows Jinja and resource limits. Imports nothing of liquidcli.
"""

from __future__ import annotations

import json
import signal
import sys
import time

import jinja2
import jinja2.debug  # otherwise opened at the first error, when no file can be
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
WARM_UP = "{% for x in ['\\n'] %}{{ x | tojson ~ strftime_now('%d %b %Y') }}{% endfor %}{{ raise_exception('') }}"
CPU_SECONDS = 60  # over the whole life of the process; one rendering is limited by its reader


class TemplateError(Exception):
    """What a template says through raise_exception."""


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model said, for training: here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.Environment:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControls, Generation])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda form: time.strftime(form)
    return env


def render(env: jinja2.Environment, request: dict) -> str:
    """The text; whatever goes wrong is raised, and longer text than asked for is an error."""
    pieces, length = [], 0
    for piece in env.from_string(request["template"]).generate(**request["context"]):
        pieces.append(piece)
        length += len(piece)
        if length > request["max_chars"]:
            raise TemplateError(f"it writes more than {request['max_chars']} characters")
    return "".join(pieces)


def answer(env: jinja2.Environment, line: str) -> dict[str, str]:
    try:
        return {"text": render(env, json.loads(line))}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it nests too deeply"}
    except Exception as error:
        return {"error": f"{error or type(error).__name__}"[:500]}


def confine() -> None:
    """No files, no children, bounded memory and time, where the system knows such limits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return
    limits = {
        "RLIMIT_AS": MEMORY_BYTES, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 3, "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }  # fmt: skip
    for name, limit in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            try:
                resource.setrlimit(kind, (limit, limit))
            except (OSError, ValueError):
                continue


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message="the template raised an exception"):
    raise TemplateError(str(message))


def main() -> None:
    env = environment()
    answer(env, json.dumps({"template": WARM_UP, "context": {}, "max_chars": 999}))  # imports what is imported late
    confine()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(env, line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
