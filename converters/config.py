"""config.json through typed, bounded getters that remember what was asked: the rest is reported, never silently lost.

Knows which keys cannot change the maths. Does not know any architecture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from liquidcli.errors import IntegrityError, LiquidError, quote

MAX_LAYERS = 512  # ref: llama.cpp, LLAMA_MAX_LAYERS
MAX_SIZE = 1 << 24
REQUIRED: Any = object()

# fmt: off
HARMLESS = frozenset({
    # identity and bookkeeping
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path",
    "_model_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "auto_map", "_commit_hash",
    "is_decoder", "is_encoder_decoder", "tokenizer_class", "task_specific_params", "problem_type", "id2label",
    "label2id", "num_labels", "finetuning_task", "unsloth_version", "unsloth_fixed", "return_dict",
    "return_dict_in_generate", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "pruned_heads",
    "tie_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention", "prefix", "output_attentions",
    "output_hidden_states",
    # training only
    "initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "dropout",
    "router_aux_loss_coef", "router_jitter_noise", "output_router_logits", "gradient_checkpointing",
    "is_llama_config",
    # how transformers computes, not what
    "use_cache", "pretraining_tp", "rope_interleaved", "cache_implementation",
    # generation, which the tokenizer or the caller settles
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores",
    "remove_invalid_values", "exponential_decay_length_penalty",
})
# fmt: on


class Config:
    """One JSON object of a configuration. Wrong types and sizes are IntegrityErrors that name the key."""

    def __init__(self, values: dict[str, Any], where: str = "config.json") -> None:
        self.values, self.where = values, where
        self._asked: set[str] = set()
        self._sections: list[Config] = []

    def raw(self, name: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent."""
        self._asked.add(name)
        value = self.values.get(name)
        if value is None and default is REQUIRED:
            raise IntegrityError(f"{self.where} has no {name}")
        return default if value is None else value

    def integer(self, name: str, default: Any = REQUIRED, *, low: int = 1, high: int = MAX_SIZE) -> Any:
        value = self.raw(name, default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number between {low} and {high}")
        return value

    def number(self, name: str, default: Any = REQUIRED, *, low: float = 0.0, high: float = 1e12) -> Any:
        value = self.raw(name, default)
        if value is default:
            return value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, value, f"a number between {low:g} and {high:g}")
        return float(value)

    def positive(self, name: str, default: Any = REQUIRED) -> Any:
        return self.number(name, default, low=math.ulp(0.0))

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Iterable[str], default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        choices = tuple(choices)
        if value is not default and value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def items(self, name: str, kind: type, length: int | None = None, default: Any = REQUIRED) -> Any:
        """A list of `kind`, of exactly `length` entries where one is given; numbers are bounded like integers."""
        value = self.raw(name, default)
        if value is default:
            return value
        kinds = (int, float) if kind is float else kind
        ok = isinstance(value, list) and all(isinstance(item, kinds) for item in value)
        if ok and kind in (int, float):
            ok = all(not isinstance(item, bool) and 0 <= item <= MAX_SIZE for item in value)
        if not ok or (length is not None and len(value) != length):
            raise self._wrong(name, value, f"a list of {'' if length is None else f'{length} '}{kind.__name__}")
        return tuple(map(kind, value))

    def section(self, name: str) -> Config | None:
        """A nested object, whose unknown keys are reported with ours."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        section = Config(value, f"{self.where}: {name}")
        self._sections.append(section)
        return section

    def extended(self, extra: dict[str, Any]) -> Config:
        """The same configuration with more or other values; what is asked there counts here."""
        other = Config({**self.values, **extra}, self.where)
        other._asked, other._sections = self._asked, self._sections
        return other

    def filled(self, defaults: dict[str, Any]) -> Config:
        """With values for keys that are not there at all; null is there."""
        return self.extended({name: value for name, value in defaults.items() if name not in self.values})

    def only(self, name: str, *allowed: Any, why: str) -> None:
        """Refuse a value that would change the maths in a way nobody here computes; absent is fine."""
        value = self.raw(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            raise LiquidError(f"{self.where}: {name} is {quote(value)}, which is not supported: {why}")

    def was_asked(self, name: str) -> bool:
        return name in self._asked

    def unknown(self) -> list[str]:
        """Keys that hold something, that nobody asked for and that are not known to be harmless."""
        found = [
            f"{self.where}: {name} = {quote(value)} is not known here and was not converted"
            for name, value in self.values.items()
            if name not in self._asked and name not in HARMLESS and not _is_nothing(value)
        ]
        return found + [line for section in self._sections for line in section.unknown()]

    def _wrong(self, name: str, value: Any, expected: str) -> IntegrityError:
        return IntegrityError(f"{self.where}: {name} is {quote(value)}, expected {expected}")


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "")
