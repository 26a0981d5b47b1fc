"""What a language model is asked, the paper's two prompts and a family of generated ones, and how its replies are read.

Why: Table 1 of arXiv 2405.18719 shows two sentences of *Alice's Adventures in Wonderland* and asks how many times a word is
mentioned in the last one. It takes the position of a sentence, not of a token, to answer. Two prompts say little of a model, so
here are more of their kind: other words, other places in the text, rising lengths, and answers other than 0.

The two sentences are Lewis Carroll's (1865, public domain). The exact wording of the paper's prompt is rebuilt from its
description, so that the replies here and there are comparable in kind only.

Generated texts hold no numbers and no number words: a model that quotes the text gives no answer by it. Each is a function of
``(seed, family, length, index)`` alone. Picture, of the family ``last_sentence`` with 2 sentences:

    The key followed the rabbit, the door hid the letter, and the rabbit passed the garden at night. The cat ...

    How many times is the word "rabbit" mentioned in the last sentence? Answer with a number.

The answer is the first whole number in the reply, in digits or in words ("zero", "twice", "twenty-one"). Ordinals ("2nd",
"second") and fractions are not numbers here. A reply without a number is "no answer", also one that says "it is not mentioned":
to read a 0 into it would be to guess. It is a column of its own, and replies are kept, so nothing is hidden by the rule. What a
reasoning model writes between ``<think>`` and ``</think>`` is not its answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice "
    "she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "
    '"and what is the use of a book," thought Alice "without pictures or conversation?"',
    "So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), "
    "whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when "
    "suddenly a White Rabbit with pink eyes ran close by her.",
)
PAPER_WORDS = ("Alice", "book")
# What each model said in Table 1 for "Alice" and for "book". The truth is 0 for both.
PAPER_ANSWERS = {
    "GPT-4 (temperature 1, top-p 1)": (1, 1),
    "Llama-2-70B-Chat (temperature 0.6, top-p 0.9)": (2, 2),
}
FAMILIES = ("whole_text", "last_sentence", "nth_sentence")

NOUNS = ("rabbit", "book", "queen", "garden", "teapot", "key", "door", "cat", "mirror", "letter", "candle", "river")
VERBS = ("followed", "noticed", "hid", "passed", "remembered", "forgot", "found", "described", "avoided")
TIMES = ("at night", "in the morning", "before dinner", "in silence", "after the rain", "in winter", "by accident")
NOUNS_IN_A_SENTENCE = 6
MOST_MENTIONS = 3  # in one sentence
ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}

RIGHT, WRONG, NO_ANSWER, FAILED = "right", "wrong", "no answer", "failed"

# fmt: off
_BELOW_TWENTY = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {
    **{word: number for number, word in enumerate(_BELOW_TWENTY)},
    **{word: 10 * number for number, word in enumerate(_TENS, start=2)},
    **{
        f"{tens}{between}{_BELOW_TWENTY[unit]}": 10 * number + unit
        for number, tens in enumerate(_TENS, start=2)
        for unit in range(1, 10)
        for between in "- "
    },
    "once": 1,
    "twice": 2,
    "thrice": 3,
}
_WORDS = "|".join(sorted(NUMBER_WORDS, key=len, reverse=True))  # "twenty-one" before "twenty"
# Digits that belong to no word ("2nd"), to no fraction ("2.5") and to no longer number ("1,000"); more than 18
# of them are no count of anything.
_NUMBER = re.compile(rf"(?<!\w)(?<!\d[.,])-?\d{{1,18}}(?!\w|[.,]\d)|\b(?:{_WORDS})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One prompt and its true answer.

    ``name`` is unlike that of every other question of a probe; ``length`` counts the sentences of the text.
    """

    name: str
    family: str
    length: int
    prompt: str
    truth: int


def count_word(text: str, word: str) -> int:
    """How many times ``word`` stands in ``text`` as a whole word, whatever its capitals."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def paper_questions() -> list[Question]:
    """The paper's two prompts, in wording rebuilt from its description."""
    return [
        Question(
            name=f"paper_{word.lower()}",
            family=f"paper_{word.lower()}",
            length=len(ALICE),
            prompt=f'{" ".join(ALICE)}\n\nTell me how many times word "{word}" is mentioned in the last sentence.',
            truth=count_word(ALICE[-1], word),
        )
        for word in PAPER_WORDS
    ]


def generated_questions(seed: int, lengths: Sequence[int], count: int) -> list[Question]:
    """``count`` questions of each family at each length.

    Args:
        seed: another one gives other texts.
        lengths: sentences of a text, each at least 2.
        count: questions of a family at one length; from 4 on, every number of mentions in a sentence is asked for.
    """
    return [_generated(seed, family, length, index) for family in FAMILIES for length in lengths for index in range(count)]


def _generated(seed: int, family: str, length: int, index: int) -> Question:
    name = f"{family}/{length}/{index}"
    source = random.Random(f"{seed}/{name}")
    word = source.choice(NOUNS)
    wanted = index % (MOST_MENTIONS + 1)
    mentions = [source.randint(0, MOST_MENTIONS) for _ in range(length)]
    if family == "whole_text":
        if wanted == 0:
            mentions = [0] * length
        place, asked = "in the text", slice(None)
    else:
        from_end = 1 if family == "last_sentence" else source.randint(2, min(length, max(ORDINALS)))
        place = "in the last sentence" if from_end == 1 else f"in the {ORDINALS[from_end]} sentence from the end"
        position = length - from_end
        asked = slice(position, position + 1)
        mentions[position] = wanted
        for neighbour in (position - 1, position + 1):  # to read the sentence beside it must not give the right answer
            if 0 <= neighbour < length:
                mentions[neighbour] = source.choice([number for number in range(MOST_MENTIONS + 1) if number != wanted])
    sentences = [_sentence(source, word, number) for number in mentions]
    prompt = f'{" ".join(sentences)}\n\nHow many times is the word "{word}" mentioned {place}? Answer with a number.'
    return Question(name, family, length, prompt, count_word(" ".join(sentences[asked]), word))


def _sentence(source: random.Random, word: str, mentions: int) -> str:
    others = [noun for noun in NOUNS if noun != word]
    nouns = [word] * mentions + source.choices(others, k=NOUNS_IN_A_SENTENCE - mentions)
    source.shuffle(nouns)
    clauses = [
        f"the {first} {source.choice(VERBS)} the {second}" for first, second in zip(nouns[::2], nouns[1::2], strict=True)
    ]
    text = f"{', '.join(clauses[:-1])}, and {clauses[-1]} {source.choice(TIMES)}."
    return text[0].upper() + text[1:]


def parse_answer(reply: str) -> int | None:
    """The first whole number in ``reply``, in digits or in words; None if there is none."""
    # Some servers leave out the opening mark, which is part of their template; without the closing one nothing was said yet.
    spoken = reply.rpartition("</think>")[2].partition("<think>")[0]
    found = _NUMBER.search(spoken)
    if found is None:
        return None
    text = found[0].lower()
    return NUMBER_WORDS[text] if text in NUMBER_WORDS else int(text)


def outcome(answer: int | None, truth: int) -> str:
    """RIGHT, WRONG or NO_ANSWER."""
    if answer is None:
        return NO_ANSWER
    return RIGHT if answer == truth else WRONG


def published_answers() -> str:
    """What the paper reports, in a few lines."""
    words = " and ".join(f'"{word}"' for word in PAPER_WORDS)
    lines = [f"{model} said {' and '.join(map(str, said))}" for model, said in PAPER_ANSWERS.items()]
    return "\n".join(
        [f"The paper (arXiv 2405.18719, Table 1), how many times {words} in the last sentence, where the truth is 0 and 0:"]
        + [f"  {line}" for line in lines]
    )
