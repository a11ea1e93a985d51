"""Options that nobody types every time: from the environment, then from a TOML file. The command line wins over both.

    LIQUID_CTX_SIZE=8192        any long option of `run` and `chat`
    LLAMA_ARG_CTX_SIZE=8192     where llama.cpp has the same option, if the first is not set
    config.toml                 keys for `run` and `chat` at the top, [bench] and the like for one verb

Knows names and where they are read. What a value means is its option's.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError

TALKING = ("run", "chat")
_BY_HAND = ("model", "ref", "words", "help")  # a model that is typed wins over one that is set, so verbs ask for it
_LLAMA = {
    "n_ctx": "CTX_SIZE", "n_threads": "THREADS", "n_batch": "BATCH", "n_ubatch": "UBATCH", "max_tokens": "N_PREDICT",
    "n_gpu_layers": "N_GPU_LAYERS", "flash_attn": "FLASH_ATTN", "type_k": "CACHE_TYPE_K", "type_v": "CACHE_TYPE_V",
    "temp": "TEMPERATURE", "top_k": "TOP_K", "top_p": "TOP_P", "min_p": "MIN_P", "repeat_penalty": "REPEAT_PENALTY",
    "presence_penalty": "PRESENCE_PENALTY", "frequency_penalty": "FREQUENCY_PENALTY", "offline": "OFFLINE",
    "chat_template": "CHAT_TEMPLATE", "chat_template_file": "CHAT_TEMPLATE_FILE",
}  # fmt: skip
_LLAMA_MODEL = ("MODEL", "HF_REPO", "MODEL_URL")


@dataclass(frozen=True)
class Presets:
    """What is set for one verb, and where, both by parameter."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def config_path() -> Path:
    """$LIQUID_CONFIG, else config.toml in $LIQUID_HOME, else in the folder for configuration."""
    if path := os.environ.get("LIQUID_CONFIG"):
        return Path(path).expanduser()
    if home := os.environ.get("LIQUID_HOME"):
        return Path(home).expanduser() / "config.toml"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "liquid" / "config.toml"


def presets(command: Any, args: list[str]) -> tuple[str, Presets]:
    """The verb and what is set for it; a key that no option has is a UsageError."""
    verb = next((arg for arg in args if not arg.startswith("-")), "")
    chosen = getattr(command, "commands", {}).get(verb)
    found = Presets()
    if chosen is None:
        return verb, found
    config = _for_verb(verb, _config(), chosen)
    for parameter in chosen.params:
        if parameter.name not in _BY_HAND:
            for value, source in _settings(verb, parameter, config):
                found.values[parameter.name], found.sources[parameter.name] = value, source
                break
    return verb, found


def model(verb: str) -> str | None:
    """The model that is set for a verb, for when none is typed."""
    names = ["LIQUID_MODEL", *(f"LLAMA_ARG_{name}" for name in _LLAMA_MODEL)]
    config = _config()
    section = config.get(verb, {})
    by_file = section.get("model") if isinstance(section, dict) else None
    found = next(filter(None, (os.environ.get(name) for name in names)), by_file or config.get("model"))
    return str(found) if found else None


def _settings(verb: str, parameter: Any, config: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    keys = _keys(parameter)
    if verb in TALKING:
        names = [f"LIQUID_{key.upper()}" for key in keys]
        names += [f"LLAMA_ARG_{_LLAMA[parameter.name]}"] if parameter.name in _LLAMA else []
        for name in names:
            if os.environ.get(name):
                value = os.environ[name]
                yield ([value] if getattr(parameter, "multiple", False) else value), name
    for key in keys:
        if key in config:
            yield config[key], f"{key} in {config_path()}"


def _keys(parameter: Any) -> list[str]:
    """An option by its long names, and by the library's."""
    long = [name[2:].replace("-", "_") for name in parameter.opts if name.startswith("--")]
    return list(dict.fromkeys([*long, parameter.name]))


def _config() -> dict[str, Any]:
    path = config_path()
    if not path.is_file():
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is no TOML: {error}", hint="mend it, or set LIQUID_CONFIG to another file") from error


def _for_verb(verb: str, config: dict[str, Any], command: Any) -> dict[str, Any]:
    """Keys of the top for the verbs that talk, and of the verb's own section for any."""
    known = {key for parameter in command.params for key in _keys(parameter)}
    section = config.get(verb, {})
    if not isinstance(section, dict):
        raise UsageError(f"{verb} in {config_path()} is no section", hint=f"[{verb}]")
    top = {key: value for key, value in config.items() if not isinstance(value, dict)} if verb in TALKING else {}
    for key in section:
        _check(key, known, verb)
    return {**top, **section}


def _check(key: str, known: set[str], verb: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"liquid {verb} --help lists the options"
        raise UsageError(f"{key} in [{verb}] of {config_path()} is no option", hint=hint)
