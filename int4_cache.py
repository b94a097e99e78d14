# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Caches that grow without being copied each time.

What this file offers:
    KVBuffer    memory of which a cache layer's keys and values are a part, with free rows behind
    growing     for as long as a prompt is read in chunks, updates of a cache write into such memory

transformers' `DynamicLayer` makes its keys and values anew for each update. What it has in between is the same here:
`keys` and `values` are views of the buffers, so that whatever crops, copies or replaces them need know nothing of it.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers.cache_utils import DynamicLayer

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
