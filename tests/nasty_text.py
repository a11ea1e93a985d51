"""Texts on which tokenizers differ: emoji, combining marks, scripts, digits, white space, code, special words, random.

Knows nothing of any tokenizer. Random texts come from a seed.
"""

from __future__ import annotations

import random
import unicodedata

CORPUS = [
    "The river runs deeper where the stones are hard; it's slow, isn't it? We've seen 1234 of 56789 stones, I'd say.",
    "def main(args):\n    if args:\n        return {'a': 1, 'b': [2, 3]}\n\n\treturn None  # nothing\r\n",
    "Größe, naïve café, señor; Ёлка и ёж, нещо на Български; 日本語のテキスト、한국어 텍스트; ภาษาไทย; مرحبا بالعالم",
    "THE QUICK Brown fOX. HTMLParser getElementById x1y2 http://a.b/c?d=e&f=%20 ½ ² ① 🚀 😶\u200d🌫️ ✅",
]
NASTY = [
    *CORPUS, "", " ", "  ", "   three", "a   12", "tabs\t\tand\n\n\nlines \n x", "\r\n\r\n", "end ", "word\n", "\nword",
    "don't DON'T Don't we'LL 's 'S", "1", "12", "123", "1234", "12345678", "3.14159e-10", "x" * 300, " \n \n ",
    "\u00a0nbsp\u3000wide\u2009thin", "\u200bzero\u200d", "e\u0301 combining", "mixedCASEWords ABCdef", "!!??...---===",
    " !a ?b", "/a/b//c/", "'''''``````\"\"\"", "\x00\x01\x7f", "កាន់តែពិសេសអាច😁", "我想在apple工作1314151天～",
    "🦙🦙 3 33 333 3333", "\U0001f468\u200d\U0001f469\u200d\U0001f467 🏳️\u200d🌈 👍🏽", "ﬁ ﬂ Ⅷ ㎏ ½¾", "a<s>b</s>c",
    "<s>", "</s> x",
    "हिन्दी में लिखा हुआ पाठ ৪৫৬ ١٢٣", "עִבְרִית בְּנִקּוּד", "Việt Nam tiếng Việt", "Zalgo: z̷̡̢a̸l̵g̶o̴", "Ÿ ŷ ŷ ǆ ǅ Ǆ",
    "for (int i=0;i<10;++i){\n\tprintf(\"%d\\n\", i);\r\n}\n", "    indented\n        more\n\n\n\nless\n",
    "a\u2028b\u2029c\x85d",
    "https://example.com/a_b-c?x=1&y=%F0%9F#frag", "$1,234.56 10^-3 0xDEADBEEF 1e10 v1.2.3", "trailing   ", "   \t ",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 5, "日" * 100, "ab" * 400, "。。，！？「」", "▁literal▁ ▁▁ lower",
    "ĠGPT-2 letters Ċ č", "\ufeffbom \ufffd replacement \U0010ffff", "I’m “quoted” – it’s — fine…",
    "ÀÉÎõü àéîõü ñÑ ß ẞ",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>", " <|eot_id|> x<|begin_of_text|>", "[INST] hi [/INST]", "<unk><pad>",
]  # fmt: skip
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t\n\r",
    ".,;:!?'\"-_/\\()[]{}<>|@#$%^&*+=~`",
    "äöüßéèñçøåÄÖÜ", "абвгдежзийклмнАБВ", "中文字符汉語漢字", "あいうえおカタカナ", "한국어글자", "אבגדה", "ابتثج",
    "कखगघ\u093f\u094d",
    "\u0301\u0308\u0327\u200d\ufe0f", "😀🚀👍🏽🦙✅", "½²①Ⅷ٣", "\u00a0\u2009\u3000\u2028\x85",
)  # fmt: skip


def random_texts(count: int, seed: int = 0, *, composed: bool = False) -> list[str]:
    """Runs of letters of one kind after another; `composed`: in normal form C, for tokenizers that normalize first."""
    source = random.Random(seed)
    texts = []
    for _ in range(count):
        runs = []
        for _ in range(source.randint(1, 12)):
            alphabet = source.choice(_ALPHABETS)
            runs.append("".join(source.choice(alphabet) for _ in range(source.randint(1, 9))))
        texts.append("".join(runs))
    return [unicodedata.normalize("NFC", text) for text in texts] if composed else texts
