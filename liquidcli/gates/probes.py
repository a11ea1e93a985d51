"""What a report on gates asks and reads when nobody brings text: kinds of text, chat prompts, questions with a number.

Every line was written for this project, none is among the prompts that gates are trained on. Knows nothing of models.
"""

from __future__ import annotations

import random
from pathlib import Path

_FORMS = (
    "How is {t} made or formed?", "What would happen if there were no {t}?", "Who works with {t}, and what do they do?",
    "Describe {t} to somebody who has never seen anything like it.", "What is the first thing to learn about {t}?",
    "Is {t} good or bad for a town? Give reasons.", "Write a short news report about {t}.",
    "Name three words that go with {t} and explain each.", "How has {t} changed over the last hundred years?",
    "Write four lines of a song about {t}.",
)  # fmt: skip
_SUBJECTS = (
    "a suspension footbridge", "salt", "a night market", "chalk", "a weather balloon", "linen", "a ferry harbour",
    "vinegar", "a public library's basement", "moss",
)  # fmt: skip
_SOURCES = ("runtime/engine.py", "runtime/perplexity.py", "gguf_file.py", "files.py")
_SENTENCE = "The lamp in the hall was lit every evening at six, and every morning at seven it was put out again. "
_PEOPLE = ("Ruth", "Omar", "Petra", "Luis", "Hana", "Viktor")
_GOODS = ("lemons", "bricks", "letters", "eggs", "candles", "tiles")


def chat_prompts() -> list[str]:
    """A hundred."""
    return [form.format(t=subject) for subject in _SUBJECTS for form in _FORMS]


def texts(package: Path) -> dict[str, str]:
    """By kind; `package` is the folder of this program, whose bundled prose and source code are two of them."""
    return {
        "repetition": _SENTENCE * 120,
        "prose": (package / "runtime" / "bench.txt").read_text(encoding="utf-8"),
        "code": "\n\n".join((package / name).read_text(encoding="utf-8") for name in _SOURCES),
        "arithmetic": "\n".join(f"{question} {steps}" for question, steps, _ in _problems(120, seed=5)),
    }


def questions(n: int) -> list[tuple[str, str]]:
    """(question, number) pairs in words, several steps each."""
    return [(question, answer) for question, _, answer in _problems(n, seed=9)]


def _problems(n: int, seed: int) -> list[tuple[str, str, str]]:
    rng = random.Random(seed)
    return [_FORMULAS[i % len(_FORMULAS)](rng) for i in range(n)]


def _shared(rng: random.Random) -> tuple[str, str, str]:
    who, goods, each, people, more = rng.choice(_PEOPLE), rng.choice(_GOODS), *(rng.randint(2, 12) for _ in range(3))
    total = each * people
    question = f"{who} gives {people} neighbours {each} {goods} each and keeps {more}. How many {goods} is that?"
    return question, f"{each} x {people} = {total}. {total} + {more} = {total + more}.", str(total + more)


def _priced(rng: random.Random) -> tuple[str, str, str]:
    who, goods, price, count = rng.choice(_PEOPLE), rng.choice(_GOODS), rng.randint(2, 9), rng.randint(3, 15)
    cost, paid = price * count, price * count + rng.randint(1, 20)
    question = f"{who} buys {count} {goods} at {price} dollars each and pays with {paid} dollars. How much comes back?"
    return question, f"{count} x {price} = {cost}. {paid} - {cost} = {paid - cost}.", str(paid - cost)


def _walked(rng: random.Random) -> tuple[str, str, str]:
    who, far, days, rest = rng.choice(_PEOPLE), rng.randint(3, 14), rng.randint(3, 9), rng.randint(1, 2)
    walked = far * (days - rest)
    question = f"{who} walks {far} miles a day but rests on {rest} of {days} days. How many miles is that?"
    return question, f"{days} - {rest} = {days - rest}. {days - rest} x {far} = {walked}.", str(walked)


def _halved(rng: random.Random) -> tuple[str, str, str]:
    who, goods, half, more = rng.choice(_PEOPLE), rng.choice(_GOODS), rng.randint(4, 30), rng.randint(2, 20)
    question = f"Half of {who}'s {2 * half} {goods} break, and {more} new ones arrive. How many are whole now?"
    return question, f"{2 * half} / 2 = {half}. {half} + {more} = {half + more}.", str(half + more)


_FORMULAS = (_shared, _priced, _walked, _halved)
