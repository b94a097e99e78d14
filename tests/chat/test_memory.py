"""What is kept of chats: what it is found by, the bound, the order in which it goes, a day."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig
from transformers.cache_utils import DynamicCache

from chat import DAY
from chat.memory import Memory, Place, digest_of, key_of, length_of, splits_picture

WINDOW = 8
CONFIG = Gemma3TextConfig(
    num_hidden_layers=2, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
)
SOFT = 99
TOKEN_BYTES = 2 * 3 * 4 * 4  # keys and values of a layer: 3 heads of 4 float32


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def rows(first: int, end: int) -> torch.Tensor:
    """Keys that say which token they are of."""
    return torch.arange(first, end).float()[None, None, :, None].expand(1, 3, -1, 4).contiguous()


def extend(cache: DynamicCache, end: int) -> None:
    """What the model does with the tokens up to `end`."""
    for layer in range(2):
        first = cache.get_seq_length(layer)
        cache.update(rows(first, end), -rows(first, end), layer)


def recall(memory: Memory, key: torch.Tensor) -> tuple[Place, DynamicCache]:
    cache = DynamicCache(config=CONFIG)
    return memory.recall(key, cache), cache


def read(memory: Memory, key: torch.Tensor) -> Place:
    """What a question does with the memory; returns where it began."""
    place, cache = recall(memory, key)
    extend(cache, len(key))
    memory.keep(place, key, cache)
    return place


def ids(*runs: tuple[int, int]) -> torch.Tensor:
    """(token, times) of each run."""
    return torch.cat([torch.full((times,), token) for token, times in runs])


def test_a_key_holds_the_whole_hash_of_each_picture() -> None:
    pictures = [torch.rand(3, 4, 4), torch.rand(3, 4, 4)]
    digests = [digest_of(picture) for picture in pictures]
    prompt = ids((1, 2), (SOFT, 5), (2, 1), (SOFT, 5), (3, 1))
    key = key_of(prompt, SOFT, digests)
    assert torch.equal(key[prompt != SOFT], prompt[prompt != SOFT])
    assert (key[prompt == SOFT] < 0).all()
    assert len(set(key[2:6].tolist())) == 4
    other = key_of(prompt, SOFT, [digests[0], digest_of(pictures[1] + 1e-6)])
    assert torch.equal(key[:8], other[:8])
    assert not (key[8:12] == other[8:12]).any()
    assert digest_of(pictures[0].bfloat16()) != digests[0]
    assert [place for place in range(len(key) + 1) if splits_picture(key, place)] == [*range(3, 7), *range(9, 13)]


@pytest.mark.parametrize("pictures", [0, 3])
def test_pictures_that_do_not_fit_the_soft_tokens_are_refused(pictures: int) -> None:
    with pytest.raises(ValueError, match=f"8 soft tokens in the prompt, and {pictures} pictures"):
        key_of(ids((1, 2), (SOFT, 8)), SOFT, [bytes([n]) * 32 for n in range(pictures)])


@pytest.mark.parametrize("at", [1, 5, WINDOW - 1, WINDOW, 19, 20, 21, 24, 29, 30])
def test_a_chat_goes_on_from_any_token_that_has_its_window(at: int) -> None:
    """Stretches of 20 and 10 tokens, more and little more than the window of 8 (7 before a token)."""
    memory = Memory(10**6)
    first, both = ids((1, 20)), ids((1, 20), (2, 10))
    read(memory, first)
    assert read(memory, both).length == 20
    place, cache = recall(memory, torch.cat([both[:at], ids((3, 9))]))
    expected = 30 if at == 30 else 20 if at >= 20 else 0
    assert place.length == expected
    if expected:
        assert length_of(cache) == expected
        sliding, full = cache.layers
        assert torch.equal(full.keys, rows(0, expected))
        assert torch.equal(sliding.keys, rows(expected - WINDOW + 1, expected))
        assert torch.equal(sliding.values, -sliding.keys)


def test_within_short_stretches_every_token_will_do() -> None:
    memory = Memory(10**6)
    prompt = ids(*((token, 3) for token in range(1, 8)))
    for end in range(3, len(prompt) + 1, 3):
        read(memory, prompt[:end])
    for at in range(1, len(prompt)):
        place, cache = recall(memory, torch.cat([prompt[:at], ids((50, 2))]))
        assert place.length == at
        assert torch.equal(cache.layers[0].keys, rows(max(0, at - WINDOW + 1), at))
        assert torch.equal(cache.layers[1].keys, rows(0, at))


def test_the_last_token_is_always_left_to_read() -> None:
    memory = Memory(10**6)
    read(memory, ids((1, 5)))
    assert recall(memory, ids((1, 5)))[0].length == 4
    assert recall(memory, ids((1, 1)))[0].length == 0


def test_a_picture_is_remembered_whole_or_not_at_all() -> None:
    memory = Memory(10**6)
    digests = [bytes(32), bytes([7]) * 32]
    prompt = ids((1, 2), (SOFT, 4), (2, 1))
    key, other = (key_of(prompt, SOFT, [digest]) for digest in digests)
    read(memory, key)
    assert recall(memory, other)[0].length == 2
    assert recall(memory, key[:5])[0].length == 2
    assert recall(memory, torch.cat([key[:6], ids((3, 1))]))[0].length == 6


def test_the_bound_holds_and_the_least_recently_used_goes_first() -> None:
    memory = Memory(3 * 2 * 5 * TOKEN_BYTES, Clock())  # three chats of five tokens
    chats = [ids((token, 5)) for token in (1, 2, 3, 4)]
    for chat in chats[:3]:
        read(memory, chat)
    assert memory.bytes == memory.limit
    read(memory, chats[0])
    read(memory, chats[3])
    assert memory.bytes == memory.limit
    assert [recall(memory, chat)[0].length for chat in chats] == [4, 0, 4, 4]
    memory.keep_features(b"a", torch.zeros(TOKEN_BYTES))
    assert memory.bytes <= memory.limit
    assert memory.features(b"a") is not None
    memory.resize(4 * TOKEN_BYTES)
    assert memory.bytes == 4 * TOKEN_BYTES
    assert memory.features(b"a") is not None
    memory.clear()
    assert memory.bytes == 0
    assert memory.features(b"a") is None


def test_bytes_are_those_of_the_tensors() -> None:
    memory = Memory(10**6)
    for end in (5, 20, 60):
        read(memory, ids((1, end)))
    kept = [*memory._stretches]
    tensors = [t for each in kept for pairs in (each.full, each.windows) for pair in pairs.values() for t in pair]
    assert memory.bytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_windows_that_no_longer_end_a_chat_go_before_what_is_used() -> None:
    """A long chat under a small bound keeps all of its full layers, and goes on."""
    tokens = 60
    memory = Memory((tokens + 3 * WINDOW) * TOKEN_BYTES, Clock())
    for end in range(6, tokens + 1, 6):
        assert read(memory, ids((1, end))).length == end - 6
        assert memory.bytes <= memory.limit


def test_what_does_not_fit_is_not_kept() -> None:
    memory = Memory(9 * TOKEN_BYTES)
    read(memory, ids((1, 4)))
    read(memory, ids((2, 5)))
    assert memory.bytes == 8 * TOKEN_BYTES
    assert recall(memory, ids((1, 4)))[0].length == 3
    nothing = Memory(0)
    read(nothing, ids((1, 4)))
    nothing.keep_features(b"a", torch.zeros(1))
    assert (nothing.bytes, nothing.features(b"a")) == (0, None)


def test_dropped_in_use_the_question_loses_nothing_and_nothing_hangs_in_the_air() -> None:
    memory = Memory(10**6)
    read(memory, ids((1, 10)))
    place, cache = recall(memory, ids((1, 12)))
    memory.resize(0)
    assert memory.bytes == 0
    assert torch.equal(cache.layers[1].keys, rows(0, 10))
    extend(cache, 12)
    memory.resize(10**6)
    assert memory.keep(place, ids((1, 12)), cache) == place
    assert memory.bytes == 0
    assert recall(memory, ids((1, 12)))[0].length == 0


def test_what_is_kept_is_a_copy() -> None:
    memory = Memory(10**6)
    place, cache = recall(memory, ids((1, 5)))
    extend(cache, 4)
    memory.keep(place, ids((1, 5)), cache)
    for layer in cache.layers:
        layer.keys.zero_()
    cache = recall(memory, ids((1, 5)))[1]
    assert torch.equal(cache.layers[1].keys, rows(0, 4))
    cache.layers[1].keys.zero_()
    assert torch.equal(recall(memory, ids((1, 5)))[1].layers[1].keys, rows(0, 4))


def test_a_cache_that_an_error_left_half_done_is_not_kept() -> None:
    memory = Memory(10**6)
    place, cache = recall(memory, ids((1, 9)))
    extend(cache, 4)
    cache.update(rows(4, 8), rows(4, 8), 0)
    assert length_of(cache) is None
    assert memory.keep(place, ids((1, 9)), cache) == place
    assert memory.bytes == 0


def test_the_same_answer_again_is_kept_once() -> None:
    memory = Memory(10**6)
    for _ in range(3):
        place, cache = recall(memory, ids((1, 5)))
        extend(cache, 9)
        memory.keep(place, ids((1, 5), (2, 4)), cache)
    assert memory.bytes == (9 + WINDOW - 1) * TOKEN_BYTES


def test_nothing_unused_outlives_a_day() -> None:
    clock = Clock()
    memory = Memory(10**6, clock)
    read(memory, ids((1, 5)))
    read(memory, ids((2, 5)))
    memory.keep_features(b"a", torch.zeros(4))
    clock.now += DAY - 1000
    read(memory, torch.cat([ids((2, 5)), ids((3, 5))]))
    clock.now += 1100
    memory.expire()
    assert recall(memory, ids((1, 5)))[0].length == 0
    assert memory.features(b"a") is None
    assert recall(memory, torch.cat([ids((2, 5)), ids((3, 5))]))[0].length == 9
    clock.now += DAY + 100
    memory.expire()
    assert memory.bytes == 0
