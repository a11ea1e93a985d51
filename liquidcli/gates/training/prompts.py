"""What the base is asked when it writes its own training text: topics, templates and the kinds they belong to.

Every line here was written for this project. Knows nothing of models; order is decided by a seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TOPICS = (
    "the river Danube", "volcanoes", "the history of chess", "steam locomotives", "honey bees", "the city of Lisbon",
    "medieval castles", "coral reefs", "the invention of paper", "lighthouses", "jazz music", "the planet Saturn",
    "suspension bridges", "the Roman Senate", "olive trees", "glass making", "the Silk Road", "polar bears",
    "the printing press", "hot air balloons", "the Great Barrier Reef", "clock making", "the violin", "wheat farming",
    "the moons of Jupiter", "submarines", "the Byzantine Empire", "bamboo", "earthquakes", "the Olympic Games",
    "railway stations", "the human heart", "monsoon rains", "wooden ships", "the Sahara desert", "penguins",
    "the French Revolution", "electric motors", "tea ceremonies", "mountain passes", "vaccines",
    "the Amazon rainforest",
    "newspaper comics", "desert foxes", "a cricket season", "a naval battle", "a rock band's second album",
    "a television episode", "a video game about knights", "a hurricane in the Gulf of Mexico", "an infantry division",
    "a county highway", "a football club", "a silent film", "a stage actress", "a species of mushroom",
    "a tropical bird",
    "a cathedral", "a World War II destroyer", "a political campaign", "a folk singer", "a coal mine", "a chess master",
    "a mountain village", "a university library", "an opera", "a bicycle race", "a fossil dinosaur",
    "a poet of the 1920s",
    "a small island nation", "a royal wedding", "a court case", "a space probe", "a baseball pitcher", "a canal",
    "photosynthesis", "black holes", "the water cycle", "supply and demand", "inflation", "the immune system",
    "machine learning", "quantum computers", "climate change", "renewable energy", "recycling", "the stock market",
    "democracy", "healthy breakfasts", "learning the guitar", "time management", "job interviews", "public speaking",
    "house plants", "training a puppy", "baking bread", "saving money", "sleeping better", "running a marathon",
    "travelling in Japan", "writing a novel", "remote work", "friendship", "stress", "a birthday party", "gardening",
    "camping", "photography", "learning Spanish", "a vegetable soup", "buying a used car", "first aid", "meditation",
    "a dragon who was afraid of fire", "a lost letter", "two brothers and a boat", "an old clock tower",
    "a girl who talked to the moon", "a robot in a bakery", "the last train home", "a thief with a conscience",
    "a snowed-in hotel", "a garden at the end of the world", "a map with no names", "a detective who hated puzzles",
)

CODE_TASKS = (
    "reverses a string", "checks whether a number is prime", "merges two sorted lists", "counts words in a file",
    "computes the factorial of n", "finds the largest number in a list", "removes duplicates from a list",
    "converts Celsius to Fahrenheit", "implements binary search", "parses a CSV line", "implements a stack",
    "prints the Fibonacci sequence", "sorts a list of dictionaries by a key", "validates an email address",
    "computes the greatest common divisor", "flattens a nested list", "reads a JSON file",
    "draws a multiplication table",
)

NAMES = (
    "Anna", "Ben", "Clara", "David", "Elena", "Farid", "Grace",
    "Hugo", "Ines", "Jonas", "Kira", "Leo", "Mona", "Noah",
)  # fmt: skip
THINGS = ("apples", "pencils", "stamps", "marbles", "books", "tickets", "cookies", "bottles", "cards", "chairs")

CHAT_TEMPLATES = (
    "Tell me about {t}.", "Explain {t} to a ten-year-old.", "Write a short essay about {t}.",
    "What should everyone know about {t}?", "Give me five tips or facts about {t}.", "Write a poem about {t}.",
    "Summarize {t} in three sentences.", "I'm curious about {t}. Where should I start?", "Why does {t} matter?",
    "Write a dialogue between two friends about {t}.", "What are common mistakes people make about {t}?",
    "Make a list of questions a student may ask about {t}, with answers.", "Write a short story about {t}.",
    "Compare {t} with something similar and explain the differences.", "Write a friendly email about {t}.",
)

ARTICLE_TEMPLATES = (
    "An encyclopedia article about {t}.\n\n", "{T}\n\nFrom an encyclopedia. ", " = {T} = \n\n ",
    "The following is a detailed history of {t}.\n\n", "{T} : origins and reception\n\nIn 19", "Chapter 3: {T}\n\n",
)

WEIGHTS = (("chat", 44), ("article", 34), ("code", 10), ("arithmetic", 12))


@dataclass(frozen=True)
class Prompt:
    """One thing to ask: chat prompts are wrapped in the model's template, others continued as they are."""

    kind: str
    text: str
    is_chat: bool


def _arithmetic(rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    thing, a, b, c = rng.choice(THINGS), rng.randint(3, 60), rng.randint(2, 40), rng.randint(2, 9)
    return rng.choice((
        f"{name} has {a} {thing} and buys {b} more. {other} has {c} times as many. How many {thing} does {other} have?",
        f"A box holds {a} {thing}. {name} fills {c} boxes and gives away {b} {thing}. How many are left?",
        f"What is {a} times {c}, plus {b}? Show the steps.",
        f"{name} reads {c} pages a day. How many days does it take to read {a + b} pages?",
        f"{name} earns {a} dollars an hour and works {c} hours a day for {b} days. How much is that in total?",
    ))


def _one(kind: str, rng: random.Random) -> Prompt:
    topic = rng.choice(TOPICS)
    title = topic[0].upper() + topic[1:]
    if kind == "chat":
        return Prompt(kind, rng.choice(CHAT_TEMPLATES).format(t=topic, T=title), True)
    if kind == "article":
        return Prompt(kind, rng.choice(ARTICLE_TEMPLATES).format(t=topic, T=title), False)
    if kind == "code":
        language = rng.choice(("Python", "JavaScript", "C", "a shell script"))
        return Prompt(kind, f"Write a program in {language} that {rng.choice(CODE_TASKS)}.", True)
    return Prompt(kind, _arithmetic(rng), True)


def prompts(seed: int, n: int) -> list[Prompt]:
    """`n` prompts in an order fixed by `seed`, kinds in the proportions of WEIGHTS."""
    rng = random.Random(seed)
    kinds, weights = [kind for kind, _ in WEIGHTS], [weight for _, weight in WEIGHTS]
    return [_one(rng.choices(kinds, weights)[0], rng) for _ in range(n)]
