# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Which keys each query sees, told in numbers that grow with the length of a prompt and not with its square.

What this file offers:
    Rule        that, for the queries and keys of one kind of layer; blocks of it become masks where they are needed
    read_rule   a Rule from what transformers hands to a mask function

A query of Gemma 3 sees one stretch of positions: up to itself, or to the end of its picture; from the start of its
sequence, or of the window. Of these, padding is not seen. So a rule is two numbers a query, and one bit a key. They are
read out of the functions that transformers composes a mask from. A function that is none of transformers' own, which
may allow anything, is asked block by block instead, for every layer anew.
"""

from collections.abc import Callable, Iterator

import torch
from transformers import masking_utils

# Rows of queries for which blocks of keys are found that no row sees, where the rule has to be asked for them.
ASKED_ROWS = 128


class Rule:
    """Which of the keys [B, H, K, D] each of the queries [B, H, Q, D] sees.

    Attributes:
        first, end: int32 [B or 1, Q]: of the keys seen, the first, and the one behind the last, in the order of the
            keys; equal where none is seen. Where `asks` is given, what lies between need not be seen.
        seen: bool [B, K], False where a key is padding; None where none is, between `first` and `end` of any query.
        asks: called with a slice of the queries and one of the keys, gives bool [B, 1, q, k]; or None.
        offset: position in the sequence of the first key.
        start: position in the sequence of the first query.
        key_count: K.
    """

    def __init__(
        self,
        first: torch.Tensor,
        end: torch.Tensor,
        seen: torch.Tensor | None,
        *,
        start: int,
        offset: int,
        key_count: int,
        asks: Callable[[slice, slice], torch.Tensor] | None = None,
    ):
        self.first, self.end, self.seen, self.asks = first, end, seen, asks
        self.start, self.offset, self.key_count = start, offset, key_count
        self._spans: dict[int, list[tuple[int, int]]] = {}

    @property
    def query_count(self) -> int:
        return self.first.shape[1]

    def contiguous(self) -> "Rule":
        """Itself: `generate` says this to every mask."""
        return self

    def to(self, device, *args, **kwargs) -> "Rule":
        """On another device: accelerate says this to every argument of a layer."""
        if torch.device(device) == self.first.device:
            return self
        seen = None if self.seen is None else self.seen.to(device)
        moved = Rule(
            self.first.to(device),
            self.end.to(device),
            seen,
            start=self.start,
            offset=self.offset,
            key_count=self.key_count,
            asks=None if self.asks is None else lambda queries, keys: self.asks(queries, keys).to(device),
        )
        moved._spans = self._spans
        return moved

    def part(self, rows: slice, offset: int, key_count: int) -> "Rule | None":
        """The rule for some of the queries, before keys of which the first has another position.

        None where this cannot be told: one of them sees a key that is not there.
        """
        if self.asks is not None:
            return None
        shift = self.offset - offset
        first, end = self.first[:, rows] + shift, self.end[:, rows] + shift
        some = first < end
        if bool((some & ((first < 0) | (end > key_count))).any()):
            return None
        first, end = (torch.where(some, place, 0) for place in (first, end))
        seen = self.seen
        if seen is not None:
            seen = torch.nn.functional.pad(seen, (shift, max(key_count - shift - seen.shape[1], 0)))[:, :key_count]
        return Rule(first, end, seen, start=self.start + rows.start, offset=offset, key_count=key_count)

    def blocks(self, rows: int) -> Iterator[tuple[slice, slice]]:
        """So many queries at a time, and the keys that any of them sees, from the first to the last."""
        if rows not in self._spans:
            shortage = -self.query_count % rows
            some = self.first < self.end
            first, end = torch.where(some, self.first, self.key_count), torch.where(some, self.end, 0)
            first = torch.nn.functional.pad(first, (0, shortage), value=self.key_count)
            first = first.unflatten(1, (-1, rows)).amin((0, 2))
            end = torch.nn.functional.pad(end, (0, shortage)).unflatten(1, (-1, rows)).amax((0, 2))
            self._spans[rows] = list(zip(first.tolist(), end.tolist(), strict=True))
        for block, (first, end) in enumerate(self._spans[rows]):
            queries = slice(block * rows, min((block + 1) * rows, self.query_count))
            yield queries, slice(min(first, end), end)

    def visible(self, queries: slice, keys: slice) -> torch.Tensor:
        """The mask of a block: bool [B or 1, 1, q, k], True where a query sees a key."""
        if self.asks is not None and keys.start < keys.stop:
            return self.asks(queries, keys)
        places = torch.arange(keys.start, keys.stop, device=self.first.device, dtype=torch.int32)
        mask = (places >= self.first[:, queries, None]) & (places < self.end[:, queries, None])
        if self.seen is not None:
            mask = mask & self.seen[:, None, keys]
        return mask.unsqueeze(1)

    def dense(self) -> torch.Tensor:
        """The whole mask, bool [B or 1, 1, Q, K]: a square, for those who can do with nothing less."""
        return self.visible(slice(0, self.query_count), slice(0, self.key_count))


def read_rule(
    function: Callable,
    padding: torch.Tensor | None,
    *,
    batch: int,
    queries: int,
    keys: int,
    start: int,
    offset: int,
    by_vmap: bool,
    device: torch.device,
) -> Rule:
    """The rule that a mask function of transformers states.

    Args:
        function: of indices of sequence, head, query and key, the two latter as positions: whether the one sees the
            other.
        padding: bool [B, S], False for padding, missing positions being padding too; or None.
        batch, queries, keys: how many.
        start, offset: positions of the first query and of the first key.
        by_vmap: whether `function` may only be called with single indices, where it is none of transformers' own.
        device: of the queries.
    """
    positions = torch.arange(start, start + queries, device=device)[None]  # [1, Q]
    seen = None
    if padding is not None:
        padding = torch.nn.functional.pad(padding, (0, max(offset + keys - padding.shape[-1], 0)))
        seen = padding[:, offset : offset + keys].bool()
    found = _Reader(device).read(function, positions)
    if found is None:
        return _asked(function, seen, batch, positions[0], keys, offset, by_vmap)
    first, end = (torch.as_tensor(place - offset).clamp(0, keys) for place in found)
    first, end = torch.broadcast_tensors(first, end, positions)[:2]
    if seen is not None:
        # Most padding is at one side, which moves the stretch and leaves nothing to be asked of each key.
        seen = seen.expand(batch, -1)
        any_seen = seen.any(1, keepdim=True)
        left = torch.where(any_seen, seen.int().argmax(1, keepdim=True), keys)
        right = torch.where(any_seen, keys - seen.flip(1).int().argmax(1, keepdim=True), 0)
        first, end = torch.maximum(first, left), torch.minimum(end, right)
        if bool((seen.sum(1, keepdim=True) == (right - left).clamp(min=0)).all()):
            seen = None
    end = torch.maximum(first, end)
    return Rule(
        first.to(torch.int32).contiguous(),
        end.to(torch.int32).contiguous(),
        seen,
        start=start,
        offset=offset,
        key_count=keys,
    )


# The stretch of positions that each query sees: [first, end), int64 tensors that broadcast to [B or 1, Q].
_Stretch = tuple[torch.Tensor, torch.Tensor]

EVERYTHING = 1 << 40  # beyond every position


class _Reader:
    """Reads stretches out of the functions that `masking_utils` makes, known by their code."""

    def __init__(self, device: torch.device):
        self.everything = torch.full((1, 1), EVERYTHING, device=device)
        self.whole_sequences = False  # each of several sequences packed into one sees itself alone
        self.sequence_positions = False  # something is stated in positions within such a sequence

    def read(self, function: Callable, positions: torch.Tensor) -> _Stretch | None:
        """The stretch that each query sees; None where it is none, or where that is not known."""
        found = self._stretch(function, positions)
        return None if self.sequence_positions and not self.whole_sequences else found

    def _stretch(self, function: Callable, positions: torch.Tensor) -> _Stretch | None:
        if function is masking_utils.causal_mask_function:
            return -self.everything, positions + 1
        if function is masking_utils.bidirectional_mask_function:
            return -self.everything, self.everything
        kind = _KINDS.get(getattr(function, "__code__", None))
        if kind is None:
            return None
        return kind(self, _enclosed(function), positions)

    def _both(self, of: dict, positions: torch.Tensor) -> _Stretch | None:
        stretches = [self._stretch(function, positions) for function in of["mask_functions"]]
        if None in stretches:
            return None
        first, end = stretches[0]
        for other in stretches[1:]:
            first, end = torch.maximum(first, other[0]), torch.minimum(end, other[1])
        return first, end

    def _either(self, of: dict, positions: torch.Tensor) -> _Stretch | None:
        stretches = [self._stretch(function, positions) for function in of["mask_functions"]]
        if None in stretches:
            return None
        first, end = stretches[0]
        for other_first, other_end in stretches[1:]:
            empty, other_empty = first >= end, other_first >= other_end
            apart = (torch.maximum(first, other_first) > torch.minimum(end, other_end)) & ~empty & ~other_empty
            if bool(apart.any()):
                return None
            least, most = torch.minimum(first, other_first), torch.maximum(end, other_end)
            first = torch.where(empty, other_first, torch.where(other_empty, first, least))
            end = torch.where(empty, other_end, torch.where(other_empty, end, most))
        return first, end

    def _window(self, of: dict, positions: torch.Tensor) -> _Stretch:
        return positions - of["sliding_window"] + 1, self.everything

    def _picture(self, of: dict, positions: torch.Tensor) -> _Stretch | None:
        ids = of["block_sequence_ids"]
        found = _runs(ids, positions)
        if found is None:
            return None
        first, end, own = found
        return first, torch.where(own >= 0, end, first)

    def _sequence(self, of: dict, positions: torch.Tensor) -> _Stretch | None:
        found = _runs(of["packed_sequence_mask"], positions)
        self.whole_sequences = True
        return None if found is None else found[:2]

    def _within_sequence(self, of: dict, positions: torch.Tensor) -> _Stretch | None:
        """A stretch in positions within a sequence, moved to where that sequence lies."""
        self.sequence_positions = True
        if of["mask_function"] is not masking_utils.causal_mask_function and not _is_window(of["mask_function"]):
            return None
        within = of["position_ids"].gather(1, positions.expand(len(of["position_ids"]), -1))
        first, end = self._stretch(of["mask_function"], within)
        return first + positions - within, end + positions - within


def _runs(ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Where the run of equal ids that a position is in begins and ends, and its id; positions beyond have the id -1.

    None where an id that is not negative has more than one run.

    Args:
        ids: [B, S].
        positions: [1, Q].
    """
    missing = int(positions[0, -1]) + 1 - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, max(missing, 0)), value=-1)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
    first = torch.where(begins, places, 0).cummax(1).values
    ends = begins.roll(-1, 1)
    end = torch.where(ends, places + 1, ids.shape[1]).flip(1).cummin(1).values.flip(1)
    earlier = torch.nn.functional.pad(ids.cummax(1).values[:, :-1], (1, 0), value=-1)
    if bool((begins & (ids >= 0) & (ids <= earlier)).any()):
        return None
    here = positions.expand(len(ids), -1)
    return first.gather(1, here), end.gather(1, here), ids.gather(1, here)


def _enclosed(function: Callable) -> dict:
    """What a function that another one has made was given by it, by name."""
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__), strict=True))


def _is_window(function: Callable) -> bool:
    """Whether a function is `sliding_window_causal_mask_function`'s."""
    code = getattr(function, "__code__", None)
    if _KINDS.get(code) is not _Reader._both:
        return False
    parts = _enclosed(function)["mask_functions"]
    return all(
        part is masking_utils.causal_mask_function or _KINDS.get(part.__code__) is _Reader._window for part in parts
    )


_ids = torch.zeros(1, 1, dtype=torch.long, device="cpu")
_remapped = masking_utils.remap_positions_for_packed_sequence(masking_utils.causal_mask_function, _ids)
_KINDS = {
    masking_utils.and_masks().__code__: _Reader._both,
    masking_utils.or_masks().__code__: _Reader._either,
    masking_utils.sliding_window_overlay(1).__code__: _Reader._window,
    masking_utils.blockwise_overlay(_ids).__code__: _Reader._picture,
    masking_utils.packed_sequence_mask_function(_ids).__code__: _Reader._sequence,
    masking_utils.remap_positions_for_packed_sequence(
        masking_utils.causal_mask_function, _ids
    ).__code__: _Reader._within_sequence,
}


def _asked(
    function: Callable,
    seen: torch.Tensor | None,
    batch: int,
    positions: torch.Tensor,
    keys: int,
    offset: int,
    by_vmap: bool,
) -> Rule:
    """The rule of a function that may allow anything: what it says is asked for when it is needed, and not kept."""
    device = positions.device

    def asks(queries: slice, wanted: slice) -> torch.Tensor:
        indices = (
            torch.arange(batch, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
            positions[queries],
            torch.arange(offset + wanted.start, offset + wanted.stop, device=device),
        )
        if by_vmap:
            with masking_utils.TransformGetItemToIndex():
                mask = masking_utils._vmap_expansion_sdpa(function)(*indices)
        else:
            mask = function(*masking_utils._non_vmap_expansion_sdpa(*indices))
        mask = mask.expand(batch, 1, len(indices[2]), len(indices[3]))
        return mask if seen is None else mask & seen[:, None, None, wanted]

    first, end = [], []
    for row in range(0, len(positions), ASKED_ROWS):
        mask = asks(slice(row, row + ASKED_ROWS), slice(0, keys))[:, 0]
        any_seen = mask.any(2)
        first.append(torch.where(any_seen, mask.int().argmax(2), 0))
        end.append(torch.where(any_seen, keys - mask.flip(2).int().argmax(2), 0))
    first, end = (torch.cat(places, 1).to(torch.int32) for places in (first, end))
    return Rule(first, end, seen, start=int(positions[0]), offset=offset, key_count=keys, asks=asks)
