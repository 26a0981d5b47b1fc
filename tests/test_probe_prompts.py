"""The word-counting probe: prompts and their truth, and how replies are read."""

from __future__ import annotations

import pytest

from cope.probe.questions import (
    FAMILIES,
    NOUNS,
    NUMBER_WORDS,
    ORDINALS,
    TIMES,
    VERBS,
    count_word,
    generated_questions,
    outcome,
    paper_questions,
    parse_answer,
)

# ---- prompts -------------------------------------------------------------------------------------------------------------


def test_the_papers_prompts() -> None:
    alice, book = paper_questions()
    assert (alice.truth, book.truth) == (0, 0)
    assert alice.prompt.endswith('\n\nTell me how many times word "Alice" is mentioned in the last sentence.')
    assert alice.prompt.replace('"Alice"', '"book"') == book.prompt
    text = alice.prompt.split("\n\n")[0]
    # Llama's answer of 2 is what the sentence before holds.
    assert (count_word(text, "Alice"), count_word(text, "book")) == (2, 2)


def test_only_whole_words_count() -> None:
    assert count_word("The key, a Key; keys, monkey, key-ring", "key") == 3


def recount(prompt: str) -> int:
    """The truth by another way than the generator's: from the finished prompt alone, without its regular expression."""
    text, question = prompt.split("\n\n")
    word = question.split('"')[1]
    sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
    if "in the last sentence" in question:
        sentences = sentences[-1:]
    elif "sentence from the end" in question:
        place = next(number for number, name in ORDINALS.items() if f"the {name} sentence" in question)
        sentences = [sentences[-place]]
    else:
        assert "in the text?" in question
    return sum(token.strip(",").lower() == word for sentence in sentences for token in sentence.split())


def test_the_truth_of_generated_prompts_is_what_their_text_says() -> None:
    questions = generated_questions(seed=3, lengths=[2, 5, 9], count=8)
    assert len({question.name for question in questions}) == len({question.prompt for question in questions}) == 3 * 3 * 8
    for question in questions:
        assert recount(question.prompt) == question.truth, question
        assert question.prompt.split("\n\n")[0].count(".") == question.length
    for family in FAMILIES:
        truths = {question.truth for question in questions if question.family == family}
        assert {0, 1, 2, 3} <= truths or (family == "whole_text" and 0 in truths and len(truths) > 4)


def test_reading_a_neighbouring_sentence_gives_another_answer() -> None:
    for question in generated_questions(seed=3, lengths=[4], count=8):
        if question.family == "last_sentence":
            assert recount(question.prompt.replace("the last sentence", "the second sentence from the end")) != question.truth


def test_generated_prompts_depend_on_the_seed_alone() -> None:
    few, many = generated_questions(1, [4], 2), generated_questions(1, [2, 4], 5)
    assert [question for question in many if question in few] == few
    assert not {question.prompt for question in generated_questions(2, [4], 2)} & {question.prompt for question in few}


def test_texts_hold_nothing_that_could_be_read_as_an_answer() -> None:
    words = {word for phrase in (*NOUNS, *VERBS, *TIMES) for word in phrase.split()}
    assert not words & set(NUMBER_WORDS)
    assert all(parse_answer(question.prompt) is None for question in generated_questions(1, [2, 8], 4))


# ---- reading replies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("0", 0),
        ("**3**.", 3),
        (r"\boxed{12}", 12),
        ('The word "Alice" is mentioned zero times.', 0),
        ('In the last sentence, the word "Alice" is mentioned 1 time.', 1),
        ("It is mentioned twice: 1. here 2. there", 2),
        ("Once.", 1),
        ("Twenty-one times", 21),
        ("twenty one", 21),
        ("sixteen", 16),
        ("seventy", 70),
        ("It is there two times, or 3.", 2),
        ("In the 2nd sentence: 5", 5),
        ("-1", -1),
        ("1,000 words or 2.5 pages", None),
        ("The word is not mentioned in the last sentence.", None),
        ("Nobody is alone; someone weighted a stone.", None),
        ("", None),
        ("<think>It says 4, no, 5.</think>\n\n2", 2),
        ("It says 4, no, 5.</think>2", 2),
        ("<think>It says 4", None),
    ],
)
def test_the_first_whole_number_is_the_answer(reply: str, answer: int | None) -> None:
    assert parse_answer(reply) == answer


def test_a_reply_without_a_number_is_neither_right_nor_wrong() -> None:
    assert [outcome(0, 0), outcome(1, 0), outcome(None, 0)] == ["right", "wrong", "no answer"]
