# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Caches that are not copied for each token.

What this file offers:
    KVBuffer     memory of which a cache layer's keys and values are a part, with free rows behind
    growing      for as long as a prompt is read in chunks, updates of a cache write into such memory
    RingLayer    a window of a static cache in which a token takes the place of the oldest
    use_rings    makes the windows of a static cache such

transformers' `DynamicLayer` makes its keys and values anew for each update. What it has in between is the same here:
`keys` and `values` are views of the buffers, so that whatever crops, copies or replaces them need know nothing of it.
Its `StaticSlidingWindowLayer` moves a whole window by one place for each token. Keys carry their positions, so that
attention does not ask for an order: only the mask of a single token has to follow theirs (`RingLayer.by_slot`).
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers.cache_utils import DynamicLayer, StaticCache, StaticSlidingWindowLayer

# Rows by which a buffer grows at least, and the share of its length by which it grows otherwise.
GROWTH_ROWS, GROWTH_SHARE = 256, 1 / 4


class KVBuffer:
    """The memory. `start` and `length` say which rows are the cache's, `rows` how many there are."""

    def __init__(self, cache: DynamicLayer, room: int = 0):
        """Copies what is in a cache layer, and shows it there.

        Args:
            cache: an initialized layer.
            room: free rows behind, at least.
        """
        batch, heads, length, head_dim = cache.keys.shape
        rows = length + max(GROWTH_ROWS, int(length * GROWTH_SHARE), room)
        self.keys, self.values = (cache.keys.new_empty(batch, heads, rows, head_dim) for _ in range(2))
        self.start, self.rows = 0, rows
        self.keys[:, :, :length] = cache.keys
        self.values[:, :, :length] = cache.values
        self.hold(cache, 0, length)

    @staticmethod
    def of(cache: DynamicLayer, new: int, room: int = 0) -> "KVBuffer":
        """A cache layer's buffer that has so many free rows: its own, or, where it has outgrown that, another.

        So it is too where something else has replaced keys or values: an update, a crop, a beam search.
        """
        buffer = cache.__dict__.get("_int4_buffer")
        if (
            buffer is None
            or cache.keys is not buffer.shown_keys
            or cache.values is not buffer.shown_values
            or buffer.start + buffer.length + new > buffer.rows
        ):
            buffer = cache._int4_buffer = KVBuffer(cache, max(new, room))
        return buffer

    def hold(self, cache: DynamicLayer, start: int, length: int) -> None:
        """Make rows start .. start + length the keys and values of the cache."""
        self.start, self.length = start, length
        cache.keys = self.shown_keys = self.keys.narrow(2, start, length)
        cache.values = self.shown_values = self.values.narrow(2, start, length)


@contextlib.contextmanager
def growing(cache, tokens: int) -> Iterator[None]:
    """Has the full layers of a DynamicCache written in place while `tokens` more come in, in several updates."""
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    end = int(cache.get_seq_length()) + tokens
    for layer in layers:
        layer.update = lambda keys, values, *args, layer=layer, **kwargs: _update(layer, keys, values, end)
    try:
        yield
    finally:
        for layer in layers:
            del layer.update


def _update(cache: DynamicLayer, keys: torch.Tensor, values: torch.Tensor, end: int):
    """What `DynamicLayer.update` does."""
    if not cache.is_initialized:
        cache.lazy_initialization(keys, values)
    if not cache.keys.numel():
        cache.keys, cache.values = keys[:, :, :0], values[:, :, :0]
    count, length = keys.shape[2], cache.keys.shape[2]
    buffer = KVBuffer.of(cache, count, end - length)
    buffer.keys[:, :, buffer.start + length : buffer.start + length + count] = keys
    buffer.values[:, :, buffer.start + length : buffer.start + length + count] = values
    buffer.hold(cache, buffer.start, length + count)
    return cache.keys, cache.values


class RingLayer(StaticSlidingWindowLayer):
    """Keys and values [B, H, window, D], those of position p in slot p % window; nothing else is ever moved.

    A single token sees the slots as they lie, and nothing that it does depends on a number that Python knows: a
    compiled step is one graph, before the window is full and after. Several tokens see the past in order of time.

    Attributes:
        room: positions that the cache has in its other layers; as many keys the mask of a single token has.
        cumulative_length: int64 [], how many tokens there were.
        cumulative_length_int: the same where Python knows it; negative where it does not, after a single token.
    """

    room: int

    def _past(self) -> range:
        """Positions that the next token sees."""
        if self.cumulative_length_int < 0:
            self.cumulative_length_int = int(self.cumulative_length)
        return range(max(self.cumulative_length_int - self.max_cache_len + 1, 0), self.cumulative_length_int)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Take in keys and values [B, H, Q, D]; gives those to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, new, device = self.max_cache_len, key_states.shape[2], key_states.device
        shown = self.keys, self.values
        if new == 1:
            self.cumulative_length_int = -1
        else:
            past = self._past()
            slots = torch.arange(past.start, past.stop, device=device) % window
            shown = tuple(
                torch.cat([held[:, :, slots], given], dim=2)
                for held, given in zip(shown, (key_states, value_states), strict=True)
            )
            self.cumulative_length_int += new
        slots = (self.cumulative_length + torch.arange(max(new - window, 0), new, device=device)) % window
        self.keys[:, :, slots] = key_states[:, :, -window:]
        self.values[:, :, slots] = value_states[:, :, -window:]
        self.cumulative_length.add_(new)
        return shown

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask has, and the position of the first."""
        if query_length == 1:
            return self.room, 0
        past = self._past()
        return len(past) + query_length, past.start

    def get_seq_length(self) -> torch.Tensor | int:
        """How many tokens there were, int64 []; 0 before the first."""
        return self.cumulative_length if self.is_initialized else 0

    def by_slot(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask of a token that is still to come, for keys in order of time [..., room] -> for slots [..., window].

        A slot that has no token yet gets what is said of a position behind that token, which nothing sees.
        """
        slots = torch.arange(self.max_cache_len, device=mask.device)
        position = self.cumulative_length.to(mask.device)
        held = position - (position - slots) % self.max_cache_len
        return mask.index_select(-1, torch.where(held < 0, slots, held))

    @staticmethod
    def of(cache: object) -> "RingLayer | None":
        """The first in a cache."""
        return next((layer for layer in getattr(cache, "layers", ()) if isinstance(layer, RingLayer)), None)


def use_rings(cache: StaticCache, room: int) -> None:
    """Make the windows of a new static cache of so many positions rings."""
    for layer in cache.layers:
        if type(layer) is StaticSlidingWindowLayer:
            layer.__class__, layer.room = RingLayer, room
