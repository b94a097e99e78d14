"""A model that reads of a prompt only what is new in it.

    Reader      answers prompts with one model, token by token, until told to stop

In Python, with nothing else of this package:

    from chat.reader import Reader

    reader = Reader(model)
    answer = reader.generate(**inputs, max_new_tokens=100)      # instead of model.generate
    ...                                                         # inputs of the whole chat, next question included
    answer = reader.generate(**inputs, max_new_tokens=100)      # reads the answer's end and the question
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from chat.memory import Memory, Place, digest_of, key_of, length_of, splits_picture
from int4_memory import bytes_available
from int4_versions import CACHE

CHUNK, SMALLEST_CHUNK = 512, 128  # tokens that are read at once
CHUNK_WORK = 110e9  # FLOP of one layer and chunk on a CPU: half a second of two slow cores
MOST_BY_DEFAULT, BY_DEFAULT = 8 * 10**9, 10**9  # bytes of memory; where nobody knows what is free


class Stopped(Exception):
    """The prompt was not read to its end, because it was told so."""


class _StopWhen(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._stop(), dtype=torch.bool, device=input_ids.device)


class Reader:
    """One model, and a memory of what it has read and written.

    Args:
        model: A Gemma 3, with or without pictures, in evaluation mode.
        limit: Bytes that the memory may hold, on the model's device; 0 keeps nothing, None leaves it to `free_share`.

    Attributes:
        memory: What is kept. It is forgotten when the model's weights are moved, cast, exchanged or changed.
    """

    def __init__(self, model: Any, limit: int | None = None) -> None:
        self.model = model
        self.memory = Memory(free_share(model.device) if limit is None else limit)
        self.chunk = chunk_size(model.config.get_text_config(), model.device)
        self._weights: tuple = ()

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        *,
        tell: Callable[[str, int, int], None] = lambda progress, done, total: None,
        stop: Callable[[], bool] = lambda: False,
        recalled: Callable[[int], None] = lambda tokens: None,
        **options: Any,
    ) -> Any:
        """Does what `model.generate` does for one prompt, reading only what is not remembered of it.

        Args:
            input_ids: int64 [1, tokens]: the whole chat, which ends with text.
            attention_mask, token_type_ids: As processors give them; ones, and where the soft tokens are.
            pixel_values: [pictures, 3, side, side]: all pictures of the chat.
            tell: Takes what is being done while the prompt is read, how much of it is done, and of how much.
            stop: Whether to stop; called between parts of the work, while reading too. What was read so far is kept.
            recalled: Takes how many of the tokens were remembered.
            **options: For `model.generate`.

        Returns:
            What `model.generate` returns; `input_ids` when stopped before the first new token.

        Raises:
            ValueError: Several prompts, padding, beams, a cache of the caller's own, or pictures that do not fit the
                soft tokens.
        """
        self._check(input_ids, attention_mask, options)
        pictures = [] if pixel_values is None else list(pixel_values)
        digests = [digest_of(pixels) for pixels in pictures]
        key = key_of(input_ids[0], getattr(self.model.config, "image_token_id", None), digests)
        if key[-1] < 0:
            raise ValueError("The prompt ends with a picture; some text has to follow.")
        self._forget_other_weights()
        cache = DynamicCache(config=self.model.config.get_text_config())
        place = self.memory.recall(key, cache)
        recalled(place.length)
        with torch.no_grad():
            try:
                self._read(input_ids, key, cache, pictures, digests, tell=tell, stop=stop)
            except Stopped:
                self.memory.keep(place, key, cache)
                return input_ids
            place = self.memory.keep(place, key, cache)
            criteria = StoppingCriteriaList([*(options.pop("stopping_criteria", None) or []), _StopWhen(stop)])
            answer = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                stopping_criteria=criteria,
                **{CACHE: cache},
                **options,
            )
        self._keep_answer(place, key, cache, answer)
        return answer

    def _check(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, options: dict) -> None:
        if len(input_ids) != 1 or input_ids.shape[1] == 0:
            raise ValueError(f"One prompt at a time: input_ids has the shape {tuple(input_ids.shape)}.")
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("The prompt has padding: attention_mask is not all ones.")
        for name in ("past_key_values", "cache", "cache_implementation", "inputs_embeds", "mm_encoder_outputs"):
            if options.get(name) is not None:
                raise ValueError(f"{name}: the reader has a cache of its own. Leave it away, or call model.generate.")
        config = options.get("generation_config") or self.model.generation_config
        for name in ("num_beams", "num_return_sequences"):
            if (options.get(name) or getattr(config, name, None) or 1) != 1:
                raise ValueError(f"{name}: the reader writes one answer. Call model.generate for more.")

    def _read(
        self,
        ids: torch.Tensor,
        key: torch.Tensor,
        cache: DynamicCache,
        pictures: list[torch.Tensor],
        digests: list[bytes],
        *,
        tell: Callable[[str, int, int], None],
        stop: Callable[[], bool],
    ) -> None:
        """Reads the prompt after what the cache holds, except its last token, in chunks that split no picture.

        Raises:
            Stopped: The cache holds what was read until then, to the last chunk's end.
        """
        recalled = start = cache.get_seq_length()
        last = len(key) - 1
        soft = key < 0
        rows = int(soft.sum()) // max(1, len(pictures))
        while start < last:
            end = chunk_end(key, start, self.chunk, last)
            arguments: dict[str, Any] = {CACHE: cache, "use_cache": True, "logits_to_keep": 1}
            before = _state(cache)
            try:
                with _asking(self.model, stop):
                    if soft[start:end].any():
                        first, beyond = (int(soft[:edge].sum()) // rows for edge in (start, end))
                        features = []
                        for number in range(first, beyond):
                            features.append(self._look(pictures[number], digests[number], number, len(pictures), tell))
                        output = BaseModelOutputWithPooling(pooler_output=torch.stack(features))
                        arguments["mm_encoder_outputs"] = {"image": output}
                        arguments["token_type_ids"] = soft[None, :end].long().to(ids.device)
                    if end < last or start > recalled:
                        tell(f"reading {start:,} of {last + 1:,} tokens", start, last + 1)
                    self.model(ids[:, start:end], **arguments)
            except Stopped:
                _set_back(cache, before, start)
                raise
            start = end

    def _look(
        self, pixels: torch.Tensor, digest: bytes, number: int, pictures: int, tell: Callable[[str, int, int], None]
    ) -> torch.Tensor:
        """A picture's features [soft tokens, hidden]."""
        features = self.memory.features(digest)
        if features is None:
            tell(f"looking at picture {number + 1} of {pictures}", number, pictures)
            pixels = pixels[None].to(self.model.device)
            features = self.model.get_image_features(pixels, return_dict=True).pooler_output[0]
            self.memory.keep_features(digest, features)
        return features

    def _keep_answer(self, place: Place, key: torch.Tensor, cache: DynamicCache, answer: Any) -> None:
        sequence = getattr(answer, "sequences", answer)
        length = length_of(cache)
        if isinstance(sequence, torch.Tensor) and length is not None and length <= sequence.shape[1]:
            self.memory.keep(place, torch.cat([key, sequence[0, len(key) :].cpu()]), cache)

    def _forget_other_weights(self) -> None:
        weights = weights_of(self.model)
        if weights != self._weights:
            self.memory.clear()
        self._weights = weights


def weights_of(model: torch.nn.Module) -> tuple:
    """What changes when weights are moved, cast, exchanged, written to, or adapters are switched."""
    tensors = [*model.parameters(), *model.buffers()]
    adapters = [
        (str(module.active_adapters), module.disable_adapters)
        for module in model.modules()
        if isinstance(getattr(type(module), "disable_adapters", None), property)  # PEFT's layers
    ]
    versions = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
    return (*versions, *adapters)


def free_share(device: torch.device) -> int:
    """The bound of a memory by default: a quarter of what is free on a device, 8 GB at most."""
    free = bytes_available(device)
    return BY_DEFAULT if free is None else min(free // 4, MOST_BY_DEFAULT)


def chunk_size(config: PretrainedConfig, device: torch.device) -> int:
    """How many tokens are read at once; on a CPU so few that no layer of a large model keeps a stop waiting."""
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    weights = config.hidden_size * (3 * config.intermediate_size + heads * config.head_dim)
    size = CHUNK
    while device.type == "cpu" and size > SMALLEST_CHUNK and 2 * weights * size > CHUNK_WORK:
        size //= 2
    return size


def chunk_end(key: torch.Tensor, start: int, size: int, last: int) -> int:
    """Where a chunk from `start` on ends: before a picture that it would split, or after one that it begins with."""
    end = min(start + size, last)
    while end > start and splits_picture(key, end):
        end -= 1
    if end == start:
        end += 1
        while splits_picture(key, end):
            end += 1
    return end


@contextmanager
def _asking(model: torch.nn.Module, stop: Callable[[], bool]) -> Iterator[None]:
    """Asks before each decoder layer, and each module of the vision tower, whether to stop.

    Modules inside a decoder layer are left alone: a fused layer sees to it that no hook of theirs is passed over.

    Raises:
        Stopped: From the model's call, in this thread; others that use the model are not asked.
    """
    thread = threading.get_ident()

    def ask(*_: Any) -> None:
        if threading.get_ident() == thread and stop():
            raise Stopped

    base = model.model
    modules = list(getattr(base, "language_model", base).layers)
    modules += list(base.vision_tower.modules()) if hasattr(base, "vision_tower") else []
    hooks = [module.register_forward_pre_hook(ask) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _state(cache: DynamicCache) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """What a cache goes back to: its sliding layers' tensors, which a step replaces; of the others it appends."""
    return [(layer.keys, layer.values) if layer.is_sliding else (None, None) for layer in cache.layers]


def _set_back(cache: DynamicCache, before: list[tuple], length: int) -> None:
    """Takes out of a cache what an interrupted step has put into some of its layers."""
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        if not layer.is_initialized:
            continue
        if not layer.is_sliding:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        elif keys is None:
            layer.reset()
        else:
            layer.keys, layer.values = keys, values
            layer.cumulative_length = length
