"""Written: the tokens of answers, found by their prompt and a beginning of their text, for a day."""

from __future__ import annotations

from chat import DAY
from chat.written import Written

WORDS = {1: "a", 2: "b", 3: "bc", 4: "", 5: "c"}


def decode(ids: list[int]) -> str:
    return "".join(WORDS[token] for token in ids)


def test_the_very_tokens_are_found_and_not_others_of_the_same_text() -> None:
    written = Written()
    written.keep([7, 8], [1, 3, 1])
    written.keep([7, 9], [1, 2, 5])
    assert written.find([7, 8], "abc", decode) == [1, 3]
    assert written.find([7, 9], "abc", decode) == [1, 2, 5]
    assert written.find([7, 8], "ab", decode) is None
    assert written.find([7, 8], "b", decode) is None
    assert written.find([7], "abc", decode) is None


def test_the_latest_answer_to_a_prompt_comes_first() -> None:
    written = Written()
    written.keep([7], [1, 3, 1])
    written.keep([7], [1, 2, 5, 2])
    assert written.find([7], "abc", decode) == [1, 2, 5]
    assert written.find([7], "abca", decode) == [1, 3, 1]


def test_bytes_of_a_character_that_is_not_whole_yet_are_kept() -> None:
    written = Written()
    written.keep([7], [1, 4])
    assert written.find([7], "a", decode) == [1, 4]


def test_what_is_old_or_too_much_goes() -> None:
    now = [0.0]
    written = Written(kept=2, clock=lambda: now[0])
    for prompt in ([1], [2], [3]):
        written.keep(prompt, [1])
    assert [written.find(prompt, "a", decode) for prompt in ([1], [2], [3])] == [None, [1], [1]]
    now[0] = DAY + 1
    assert written.find([3], "a", decode) is None
    nothing = Written(kept=0)
    nothing.keep([1], [1])
    assert nothing.find([1], "a", decode) is None
