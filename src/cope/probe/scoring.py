"""What number a reply gives, and whether it is the right one.

The answer is the first whole number in the reply, in digits or in words ("zero", "twice", "twenty-one"). Ordinals ("2nd",
"second") and fractions are not numbers here. A reply without a number is "no answer", also one that says "it is not mentioned":
to read a 0 into it would be to guess. It is a column of its own, and replies are kept, so nothing is hidden by the rule.

What a reasoning model writes between ``<think>`` and ``</think>`` is not its answer.
"""

from __future__ import annotations

import re

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
