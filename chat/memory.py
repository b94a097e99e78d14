"""What stays of chats between two questions: what the model computed of their tokens, and their pictures' features.

    key_of      tokens and pictures -> what a kept beginning is found by
    Memory      keeps both within a bound of bytes; what was not used for the longest time goes first

What is kept is a tree of stretches of tokens. The path to a leaf is a chat; a retry, an edit or another chat that
begins alike leaves it at any token, and becomes a branch there. Of layers with full attention a stretch holds keys and
values of all its tokens, of sliding ones those of the last tokens, a window at most. A chat can go on from every token
before which a whole window is there: from each end of a stretch, and from within one that is shorter than the window.

Tensors go in and out as copies: no question can change what is kept, nor lose what it has begun with.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache

from chat import DAY

Pairs = dict[int, tuple[torch.Tensor, torch.Tensor]]  # layer -> keys and values [1, heads, tokens, head_dim]


def digest_of(pixels: torch.Tensor) -> bytes:
    """SHA-256 of a picture as the model sees it: pixels [3, side, side] and their dtype."""
    pixels = pixels.detach().cpu().contiguous()
    return hashlib.sha256(str(pixels.dtype).encode() + pixels.view(torch.uint8).numpy().tobytes()).digest()


def give_back_freed() -> None:
    """Gives the system what was freed. Of small tensors the C library keeps it; glibc's can be asked not to."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def key_of(ids: torch.Tensor, soft_token: int | None, digests: list[bytes]) -> torch.Tensor:
    """What a kept beginning is found by: token ids, each soft token replaced by a part of its picture's hash.

    Args:
        ids: int64 [tokens].
        soft_token: The id that stands for a row of a picture's features; None for a model that reads text only.
        digests: As from `digest_of`, in the pictures' order; each has the same number of soft tokens.

    Returns:
        int64 [tokens], on the CPU; negative where a soft token is.

    Raises:
        ValueError: The soft tokens cannot be those of so many pictures.
    """
    key = ids.detach().cpu().clone()
    soft = (key == soft_token).nonzero()[:, 0] if soft_token is not None else key.new_empty(0)
    if len(soft) % max(1, len(digests)) or bool(len(soft)) != bool(digests):
        raise ValueError(f"{len(soft)} soft tokens in the prompt, and {len(digests)} pictures: they do not match.")
    if digests:
        words = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64).view(len(digests), -1)
        rows = len(soft) // len(digests)
        key[soft] = words.repeat(1, -(-rows // words.shape[1]))[:, :rows].flatten() | torch.iinfo(torch.int64).min
    return key


def splits_picture(key: torch.Tensor, place: int) -> bool:
    """Whether a cut before this token is inside a picture, the soft tokens of which see each other."""
    return 0 < place < len(key) and bool(key[place - 1] < 0) and bool(key[place] < 0)


def length_of(cache: DynamicCache) -> int | None:
    """How many tokens a cache holds; None where its layers disagree, as after an error in the middle of a step."""
    lengths = {layer.get_seq_length() for layer in cache.layers}
    for layer in cache.layers:
        lengths.add(layer.get_seq_length() if _rows(layer) >= _wanted(layer, layer.get_seq_length()) else None)
    return lengths.pop() if len(lengths) == 1 else None


def _rows(layer: object) -> int:
    return layer.keys.shape[-2] if layer.is_initialized else 0


def _wanted(layer: object, length: int) -> int:
    """How many tokens' keys a layer needs to go on after so many tokens."""
    return min(length, layer.sliding_window - 1) if layer.is_sliding else length


@dataclass(eq=False)
class Stretch:
    """Tokens from `start` on, which follow after those of `parent` before `start`."""

    parent: Stretch | None
    start: int
    key: torch.Tensor
    full: Pairs
    windows: Pairs  # of sliding layers: the last `kept` tokens
    kept: int
    used: float = 0.0
    windows_used: float = 0.0
    branches: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.key)

    def path(self, length: int) -> Iterator[tuple[Stretch, int]]:
        """The stretches that the first `length` tokens are in, the last one first, each with the tokens' end in it."""
        stretch: Stretch | None = self
        while stretch is not None:
            yield stretch, length
            stretch, length = stretch.parent, stretch.start


@dataclass(frozen=True)
class Place:
    """A place in the tree: the beginning of so many tokens that ends in a stretch."""

    stretch: Stretch | None = None
    length: int = 0


@dataclass
class _Features:
    tensor: torch.Tensor
    used: float = field(default_factory=time.time)


class Memory:
    """Keys and values of chats, and features of pictures, for one model as it is. For several threads.

    Args:
        limit: Bytes that it may hold; 0 keeps nothing.
        clock: Seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.bytes = 0
        self._clock = clock
        self._stretches: dict[Stretch, None] = {}  # parents before their branches
        self._features: dict[bytes, _Features] = {}
        self._lock = threading.RLock()

    def recall(self, key: torch.Tensor, cache: DynamicCache) -> Place:
        """Fills an empty cache with the longest kept beginning of a prompt that leaves the last token to be read.

        Args:
            key: The prompt's, as from `key_of`.
            cache: As `DynamicCache(config=...)` makes it.
        """
        with self._lock:
            self.expire()
            place = self._longest(key, _window(cache))
            if place.stretch is not None:
                self._fill(cache, place)
            return place

    def keep(self, place: Place, key: torch.Tensor, cache: DynamicCache) -> Place:
        """Keeps what a cache holds after a place.

        Args:
            place: Where the cache's tokens before were kept; as from `recall` or `keep`.
            key: Of at least the tokens that the cache holds.
            cache: What the model has left; it may be used on.

        Returns:
            The place after it; `place` itself where nothing was kept: the cache has nothing new or is not whole, the
            bound leaves no room, or what came before has been dropped meanwhile.
        """
        length = length_of(cache)
        if not self.limit or length is None or length <= place.length:
            return place
        tokens = length - place.length
        kept = min(tokens, _window(cache))
        with self._lock:
            same = self._longest(torch.cat([key[:length], key.new_zeros(1)]), _window(cache))
            if same.stretch is not None and same.length == length:  # as another answer to the question may have left it
                self._touch(same)
                return same
            if not self._make_room(_bytes_of(cache, tokens), place):
                return place
            full = {i: _last(layer, tokens) for i, layer in enumerate(cache.layers) if not layer.is_sliding}
            windows = {i: _last(layer, kept) for i, layer in enumerate(cache.layers) if layer.is_sliding}
            stretch = Stretch(place.stretch, place.length, key[place.length : length].clone(), full, windows, kept)
            stretch.used = stretch.windows_used = self._clock()
            self._stretches[stretch] = None
            if stretch.parent is not None:
                stretch.parent.branches += 1
            self.bytes += _nbytes(full) + _nbytes(windows)
            return Place(stretch, length)

    def features(self, digest: bytes) -> torch.Tensor | None:
        """A picture's features [soft tokens, hidden], if they are kept."""
        with self._lock:
            found = self._features.get(digest)
            if found is None:
                return None
            found.used = self._clock()
            return found.tensor

    def keep_features(self, digest: bytes, tensor: torch.Tensor) -> None:
        with self._lock:
            if digest not in self._features and self.limit and self._make_room(tensor.nbytes):
                self._features[digest] = _Features(tensor.clone(), self._clock())
                self.bytes += tensor.nbytes

    def resize(self, limit: int) -> None:
        """Changes the bound; what is over it is dropped at once."""
        with self._lock:
            self.limit = limit
            self._make_room(0)
        give_back_freed()

    def expire(self) -> None:
        """Drops what was not used for a day."""
        with self._lock:
            while (oldest := self._oldest()) is not None and oldest[0] < self._clock() - DAY:
                self._drop(oldest[1])

    def clear(self) -> None:
        with self._lock:
            self._stretches.clear()
            self._features.clear()
            self.bytes = 0
        give_back_freed()

    def _longest(self, key: torch.Tensor, window: int) -> Place:
        best = Place()
        alike: dict[Stretch, int] = {}  # tokens from the chat's beginning on that are the same
        for stretch in self._stretches:
            start = stretch.start
            if stretch.parent is not None and alike[stretch.parent] < start:
                alike[stretch] = 0
                continue
            alike[stretch] = start + _common(stretch.key, key[start : len(key) - 1])
            length = alike[stretch]
            while splits_picture(key, length):
                length -= 1
            if length > max(start, best.length) and _can_go_on(stretch, length, window):
                best = Place(stretch, length)
        return best

    def _fill(self, cache: DynamicCache, place: Place) -> None:
        self._touch(place)
        path = list(place.stretch.path(place.length))
        first_of = {i: place.length - _wanted(layer, place.length) for i, layer in enumerate(cache.layers)}
        for stretch, end in path:
            if any(first_of[i] < end for i in stretch.windows):
                stretch.windows_used = stretch.used
        for i, layer in enumerate(cache.layers):
            parts = [_part(stretch, i, first_of[i], end) for stretch, end in reversed(path) if first_of[i] < end]
            keys, values = (torch.cat(tensors, dim=-2) for tensors in zip(*parts, strict=True))
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if layer.is_sliding:
                layer.cumulative_length = place.length

    def _touch(self, place: Place) -> None:
        now = self._clock()
        for stretch, _ in place.stretch.path(place.length):
            stretch.used = now

    def _make_room(self, size: int, place: Place | None = None) -> bool:
        """Drops the oldest until so many bytes more fit; whether they do, and what ends at a place is still kept."""
        stretch = place.stretch if place else None
        if stretch is not None:
            if stretch not in self._stretches:
                return False
            self._touch(place)
        before = [_nbytes(each.full) for each, _ in stretch.path(place.length)] if stretch else []
        if size + sum(before) > self.limit:
            return False
        while self.bytes + size > self.limit and (oldest := self._oldest()) is not None:
            self._drop(oldest[1])
        return self.bytes + size <= self.limit and (stretch is None or stretch in self._stretches)

    def _oldest(self) -> tuple[float, Stretch | bytes] | None:
        """What was not used for the longest time: a leaf, the windows of a stretch with branches, or features."""
        ages = [(features.used, digest) for digest, features in self._features.items()]
        for stretch in self._stretches:
            if not stretch.branches:
                ages.append((stretch.used, stretch))
            elif stretch.kept:
                ages.append((stretch.windows_used, stretch))
        return min(ages, key=lambda age: age[0], default=None)

    def _drop(self, what: Stretch | bytes) -> None:
        if isinstance(what, bytes):
            self.bytes -= self._features.pop(what).tensor.nbytes
            return
        self.bytes -= _nbytes(what.windows)
        what.windows, what.kept = {}, 0
        if not what.branches:
            self.bytes -= _nbytes(what.full)
            del self._stretches[what]
            if what.parent is not None:
                what.parent.branches -= 1


def _common(a: torch.Tensor, b: torch.Tensor) -> int:
    """Length of the beginning that two keys have in common."""
    length = min(len(a), len(b))
    different = (a[:length] != b[:length]).nonzero()
    return int(different[0]) if len(different) else length


def _window(cache: DynamicCache) -> int:
    """How many tokens before it a token of a sliding layer sees."""
    return max((layer.sliding_window - 1 for layer in cache.layers if layer.is_sliding), default=0)


def _can_go_on(stretch: Stretch, length: int, window: int) -> bool:
    """Whether the whole window before a token is kept."""
    first = max(0, length - window)
    return all(part.end - part.kept <= max(first, part.start) for part, end in stretch.path(length) if first < end)


def _part(stretch: Stretch, layer: int, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that a stretch has of the tokens first .. end of the chat."""
    begins = stretch.start if layer in stretch.full else stretch.end - stretch.kept
    pair = stretch.full.get(layer) or stretch.windows[layer]
    keys, values = (tensor[:, :, max(0, first - begins) : end - begins] for tensor in pair)
    return keys, values


def _last(layer: object, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the keys and values of a layer's last tokens."""
    rows = _rows(layer)
    keys, values = (tensor[:, :, rows - tokens : rows] for tensor in (layer.keys, layer.values))
    return keys.clone(memory_format=torch.contiguous_format), values.clone(memory_format=torch.contiguous_format)


def _bytes_of(cache: DynamicCache, tokens: int) -> int:
    return sum(
        2 * layer.keys[:, :, :1].numel() * layer.keys.element_size() * _wanted(layer, tokens) for layer in cache.layers
    )


def _nbytes(pairs: Pairs) -> int:
    return sum(tensor.nbytes for pair in pairs.values() for tensor in pair)
