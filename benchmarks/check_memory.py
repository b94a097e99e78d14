"""Random chats with a reader that remembers, each answer held against one pass of the model over the whole chat.

    python -m benchmarks.check_memory --chats 200                          a small random model, window of 32 tokens
    python -m benchmarks.check_memory --chats 50 --model . --dtype bfloat16

A chat has 1 to 12 turns with pictures in any of them, long and short ones, around the window and far past it. Between
them chats are switched, answers retried, earlier questions edited; answers end at any length or are stopped, prompts
are stopped while they are read, the model fails in any layer, and much is dropped: the bound holds a few chats.

In float32 logits may differ by 1e-4 and no greedy token may differ; in bfloat16 none with a margin over 0.25.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # of float32 logits
MARGIN = 0.25  # between the two best bfloat16 logits, over which a greedy token is sure
WINDOW = 32  # of the small model


@dataclass
class RandomChat:
    """A chat as token ids and pictures; `turns` are the places at which its questions begin."""

    ids: list[int] = field(default_factory=lambda: [2])
    pictures: list[Any] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    length: int = 1  # in turns
    question_end: int = 0  # of the last question


@dataclass
class Result:
    """What was compared: logits' largest difference, tokens that differ, and what happened on the way."""

    answers: int = 0
    tokens: int = 0
    remembered: int = 0
    prompt_tokens: int = 0
    difference: float = 0.0
    wrong: list[str] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1


def small_model() -> Any:
    """Gemma 3 with random weights: six text layers, of which the last sees everything, and a tower of one."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "sliding_window": WINDOW,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 16,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    tokens = {"boi_token_index": 508, "eoi_token_index": 509, "image_token_index": 510}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # transformers' own are so small that nothing would matter
            if parameter.ndim > 1 or "mm_input" in name:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        model.get_input_embeddings().weight[tokens["image_token_index"]] = 0  # no answer shall have a soft token
    return model


class Player:
    """Plays random chats on one reader and compares each answer."""

    def __init__(self, model: Any, seed: int, limit: int, turns: int = 12) -> None:
        from chat.reader import Reader

        self.model = model
        self.turns = turns
        self.random = random.Random(seed)
        self.reader = Reader(model, limit)
        self.reader.chunk = self.random.choice((16, 24, 40, 512))
        self.result = Result()
        config = model.config
        self.window = config.get_text_config().sliding_window
        self.words = [id_ for id_ in range(8, min(500, config.get_text_config().vocab_size - 8))]
        self.greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "eos_token_id": None}

    def play(self, chats: int) -> Result:
        """Plays so many chats, several of them by turns."""
        started, open_chats = 0, []
        while started < chats or open_chats:
            if started < chats and (not open_chats or (len(open_chats) < 4 and self.random.random() < 0.3)):
                open_chats.append(RandomChat(length=self.random.randint(min(3, self.turns), self.turns)))
                started += 1
            chat = self.random.choice(open_chats)
            self.turn(chat)
            if len(chat.turns) >= chat.length:
                open_chats.remove(chat)
        return self.result

    def turn(self, chat: RandomChat) -> None:
        happens = self.random.random()
        if chat.turns and happens < 0.15:
            self.result.note("retried")
            del chat.ids[chat.question_end :]
        elif chat.turns and happens < 0.3:
            self.result.note("edited")
            place = self.random.randrange(len(chat.turns))
            ids, pictures = chat.turns[place]
            del chat.turns[place:], chat.ids[ids:], chat.pictures[pictures:]
            self.ask(chat)
        else:
            self.ask(chat)
        self.answer(chat)

    def ask(self, chat: RandomChat) -> None:
        """Adds a question; its last token is text."""
        chat.turns.append((len(chat.ids), len(chat.pictures)))
        pictures = self.random.choice((0, 0, 0, 1, 2))
        for _ in range(pictures):
            self.add_words(chat)
            chat.ids += [self.model.config.boi_token_index] + self.soft_tokens + [self.model.config.eoi_token_index]
            chat.pictures.append(self.picture())
        self.add_words(chat)
        chat.question_end = len(chat.ids)

    def add_words(self, chat: RandomChat) -> None:
        near = self.window + self.random.randint(-3, 3)
        count = self.random.choice((1, self.random.randint(1, 12), self.random.randint(1, 12), near, 3 * self.window))
        chat.ids += self.random.choices(self.words, k=min(count, 400))

    @property
    def soft_tokens(self) -> list[int]:
        return [self.model.config.image_token_id] * self.model.config.mm_tokens_per_image

    def picture(self) -> Any:
        """One of ten pictures of noise, so that some come again."""
        import torch

        side = self.model.config.vision_config.image_size
        generator = torch.Generator().manual_seed(self.random.randrange(10))
        return torch.rand(3, side, side, generator=generator) * 2 - 1

    def answer(self, chat: RandomChat) -> None:
        import torch

        inputs = {"input_ids": torch.tensor([chat.ids])}
        if chat.pictures:
            inputs["pixel_values"] = torch.stack(chat.pictures)
        happens, calls = self.random.random(), self.random.randint(1, 30)
        new = self.random.choice((1, 2, 3, self.random.randint(3, 20), min(self.window, 60) + 5))

        def stop() -> bool:
            nonlocal calls
            calls -= happens < 0.2
            return calls < 0

        def note_recalled(tokens: int) -> None:
            self.result.remembered += tokens

        self.result.prompt_tokens += len(chat.ids)
        layers = self.model.model.language_model.layers
        broken = None
        if 0.2 < happens < 0.27:
            self.result.note("failed")
            broken = self.random.choice(layers).register_forward_pre_hook(self.fail_at(calls // 4))
        try:
            answer = self.reader.generate(
                **inputs,
                **self.greedy,
                max_new_tokens=new,
                stop=stop,
                recalled=note_recalled,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except ZeroDivisionError:
            return
        finally:
            if broken is not None:
                broken.remove()
        if isinstance(answer, torch.Tensor):
            self.result.note("stopped while reading")
            return
        if calls < 0:
            self.result.note("stopped while answering")
        self.compare(chat, answer)
        written = answer.sequences[0, len(chat.ids) :].tolist()
        kept = len(written) if self.random.random() < 0.7 else self.random.randint(0, len(written))
        chat.ids += written[:kept] + self.random.choices(self.words, k=2)

    def fail_at(self, call: int) -> Any:
        def fail(*_: Any) -> None:
            nonlocal call
            call -= 1
            if call < 0:
                raise ZeroDivisionError

        return fail

    def compare(self, chat: RandomChat, answer: Any) -> None:
        """Holds an answer's logits and tokens against one pass over all, without a cache."""
        import torch

        ids = answer.sequences[:, :-1]
        inputs = {"input_ids": ids, "token_type_ids": (ids == self.model.config.image_token_id).long()}
        if chat.pictures:
            inputs["pixel_values"] = torch.stack(chat.pictures)
        with torch.no_grad():
            expected = self.model(**inputs, use_cache=False).logits[0, len(chat.ids) - 1 :].float()
        found = torch.cat(answer.logits).float()
        written = answer.sequences[0, len(chat.ids) :]
        best = expected.topk(2).values
        differs = expected.argmax(-1) != written
        if self.model.dtype != torch.float32:
            differs &= best[:, 0] - best[:, 1] > MARGIN
        difference = float((found - expected).abs().max())
        self.result.answers += 1
        self.result.tokens += len(written)
        self.result.difference = max(self.result.difference, difference)
        if bool(differs.any()) or (self.model.dtype == torch.float32 and difference > TOLERANCE):
            self.result.wrong.append(
                f"turn {len(chat.turns)}, {len(chat.ids)} tokens: {difference:.2g}, {differs.sum()}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--model", help="folder or Hub id; default: a small random model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--megabytes", type=float, default=4, help="the memory's bound")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForImageTextToText

    dtype = getattr(torch, arguments.dtype)
    if arguments.model:
        folder = str(Path(arguments.model).expanduser())
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=dtype).eval()
    else:
        model = small_model().to(dtype)
    player = Player(model, arguments.seed, int(arguments.megabytes * 1e6))
    result = player.play(arguments.chats)
    print(f"{arguments.chats} chats, {result.answers} answers of {result.tokens:,} tokens in all, {arguments.dtype}")
    print(f"remembered {result.remembered:,} of {result.prompt_tokens:,} prompt tokens; {result.happened}")
    print(f"largest difference of logits {result.difference:.3g}; wrong answers: {len(result.wrong)}")
    print(f"memory: {player.reader.memory.bytes:,} of {player.reader.memory.limit:,} bytes")
    if result.wrong:
        sys.exit("\n".join(result.wrong[:20]))


if __name__ == "__main__":
    main()
