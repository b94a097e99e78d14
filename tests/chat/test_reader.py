"""A reader that remembers gives the answers of one that does not, whatever happened before."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.check_memory import WINDOW, Player, small_model
from chat.memory import key_of
from chat.reader import Reader, chunk_end, chunk_size
from chat.repo import ROOT
from chat.shares import Shares

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "eos_token_id": None}
BOI, EOI, SOFT = 508, 509, 510
LONG = list(range(10, 10 + 5 * WINDOW))
QUESTION = [2, *LONG, 20, 21]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return small_model()


def picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_picture(*after: int) -> list[int]:
    return [2, 30, BOI, SOFT, SOFT, SOFT, SOFT, EOI, *after]


def ask(reader: Reader, ids: list[int], pixels: torch.Tensor | None = None, new: int = 6, **options: Any) -> list[int]:
    answer = reader.generate(torch.tensor([ids]), pixel_values=pixels, max_new_tokens=new, **GREEDY, **options)
    return answer[0, len(ids) :].tolist()


def expected(model: Any, ids: list[int], pixels: torch.Tensor | None = None, new: int = 6) -> list[int]:
    """What `generate` itself says."""
    inputs = {"input_ids": torch.tensor([ids])} | ({} if pixels is None else {"pixel_values": pixels})
    inputs["token_type_ids"] = (inputs["input_ids"] == SOFT).long()
    return model.generate(**inputs, max_new_tokens=new, **GREEDY)[0, len(ids) :].tolist()


def remembered(reader: Reader, ids: list[int], pixels: torch.Tensor | None = None) -> int:
    """How many tokens the reader need not read."""
    seen: list[int] = []
    ask(reader, ids, pixels, new=1, recalled=seen.append)
    return seen[0]


@pytest.mark.parametrize("seed", range(2))
def test_random_chats_get_the_logits_of_one_pass_over_all(model: Any, seed: int) -> None:
    result = Player(model, seed, limit=4_000_000, turns=8).play(4)
    assert not result.wrong
    assert result.difference < 1e-4
    assert result.answers > 10
    assert result.remembered > result.prompt_tokens / 3
    assert len(result.happened) >= 2


def test_random_chats_in_bfloat16_get_the_same_sure_tokens(model: Any) -> None:
    assert not Player(copy.deepcopy(model).bfloat16(), seed=5, limit=4_000_000, turns=4).play(2).wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_chats_with_the_shipped_checkpoint(dtype: torch.dtype) -> None:
    from transformers import AutoModelForImageTextToText

    shipped = AutoModelForImageTextToText.from_pretrained(ROOT, trust_remote_code=True, dtype=dtype).eval()
    result = Player(shipped, seed=1, limit=40_000_000, turns=3).play(1)
    assert not result.wrong
    assert result.remembered > 0


def test_follow_up_retry_edit_and_branch_read_what_is_new(model: Any) -> None:
    reader = Reader(model, 10**8)
    answer = ask(reader, QUESTION)
    follow_up = [*QUESTION, *answer, 40, 41]
    assert remembered(reader, follow_up) == len(QUESTION) + 5  # the answer's last token was never read
    assert remembered(reader, QUESTION) == len(QUESTION) - 1
    assert remembered(reader, [*QUESTION, *answer[:3], 50, 51]) == len(QUESTION) + 3
    assert remembered(reader, [*follow_up, 60]) == len(follow_up)
    assert remembered(reader, [*QUESTION[:-1], 70, 71]) == len(QUESTION) - 1
    assert remembered(reader, [3, *QUESTION]) == 0


def test_a_picture_is_looked_at_once(model: Any) -> None:
    reader, looks = Reader(model, 10**8), []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda *_: looks.append(1))
    told: list[str] = []
    for ids, pixels in (
        (with_picture(31, 32), picture(0)),
        (with_picture(31, 32, 33), picture(0)),
        ([2, *LONG, *with_picture(34)[1:]], picture(0)),
        (with_picture(31, *with_picture(35)[1:]), torch.cat([picture(1), picture(0)])),
    ):
        ask(reader, ids, pixels, tell=lambda progress, *_: told.append(progress))
    hook.remove()
    assert len(looks) == 2
    assert [line for line in told if "picture" in line] == ["looking at picture 1 of 1", "looking at picture 1 of 2"]


def test_another_picture_under_the_same_tokens_is_not_mistaken(model: Any) -> None:
    reader = Reader(model, 10**8)
    for seed in (0, 1, 0):
        ids = with_picture(31, 32)
        assert ask(reader, ids, picture(seed)) == expected(model, ids, picture(seed))
    assert expected(model, ids, picture(0), 12) != expected(model, ids, picture(1), 12)
    assert remembered(reader, with_picture(31, 32), picture(2)) == 3


def stop_after(calls: int) -> Callable[[], bool]:
    def stop() -> bool:
        nonlocal calls
        calls -= 1
        return calls < 0

    return stop


@pytest.mark.parametrize("calls", range(0, 37, 3))
def test_stopped_while_reading_keeps_the_chunks_that_were_read(model: Any, calls: int) -> None:
    reader = Reader(model, 10**8)
    reader.chunk = 32
    assert ask(reader, QUESTION, stop=stop_after(calls)) in ([], expected(model, QUESTION)[:1])
    chunks = min(calls // 6 * 32, len(QUESTION) - 1)  # six layers a chunk
    assert remembered(reader, QUESTION) == chunks
    reader.memory.clear()
    ask(reader, QUESTION, stop=stop_after(calls))
    assert ask(reader, QUESTION) == expected(model, QUESTION)


def test_stopped_in_the_tower(model: Any) -> None:
    reader = Reader(model, 10**8)
    ids = with_picture(31, 32)
    modules = len(list(model.model.vision_tower.modules()))
    asked: list[bool] = []
    assert ask(reader, ids, picture(3), stop=lambda: bool(asked.append(len(asked) == 4) or asked[-1])) == []
    assert len(asked) == 5 < modules
    assert reader.memory.bytes == 0
    assert ask(reader, ids, picture(3)) == expected(model, ids, picture(3))


def test_stopped_while_answering_keeps_the_answer_so_far(model: Any) -> None:
    reader = Reader(model, 10**8)
    ask(reader, QUESTION, new=1)
    answer = ask(reader, QUESTION, new=50, stop=stop_after(4))
    assert answer == expected(model, QUESTION, new=5)
    assert remembered(reader, [*QUESTION, *answer, 40]) == len(QUESTION) + 4


@pytest.mark.parametrize("layer", range(6))
@pytest.mark.parametrize("call", [0, 1, 3, 7])
def test_an_error_leaves_no_wrong_cache(model: Any, layer: int, call: int) -> None:
    reader = Reader(model, 10**8)
    reader.chunk = 64
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise RuntimeError("out of memory, say")

    hook = model.model.language_model.layers[layer].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(reader, QUESTION)
    hook.remove()
    assert ask(reader, QUESTION) == expected(model, QUESTION)
    follow_up = [*QUESTION, *ask(reader, QUESTION), 40]
    assert ask(reader, follow_up) == expected(model, follow_up)


def change_a_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.language_model.layers[2].mlp.up_proj.weight[:] *= 1.5


def exchange_a_weight(model: Any) -> None:
    projection = model.model.language_model.layers[2].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight * 1.5)


def cast(model: Any) -> None:
    model.double()


@pytest.mark.parametrize("change", [change_a_weight, exchange_a_weight, cast])
def test_another_models_memory_is_forgotten(model: Any, change: Callable) -> None:
    model = copy.deepcopy(model)
    reader = Reader(model, 10**8)
    ask(reader, QUESTION)
    change(model)
    assert remembered(reader, QUESTION) == 0
    assert ask(reader, QUESTION) == expected(model, QUESTION)


def test_switched_adapters_are_another_model(model: Any) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"])).base_model.model
    reader = Reader(adapted.eval(), 10**8)
    ask(reader, QUESTION)
    assert remembered(reader, QUESTION) > 0
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.enable_adapters(False)
    assert remembered(reader, QUESTION) == 0


def test_a_bound_of_nothing_and_a_tiny_one_answer_alike(model: Any) -> None:
    for limit in (0, 30_000):
        reader = Reader(model, limit)
        ids = list(QUESTION)
        for _ in range(3):
            answer = ask(reader, ids)
            assert answer == expected(model, ids)
            assert reader.memory.bytes <= limit
            ids += [*answer, 40]


def test_what_the_memory_holds_may_go_while_it_is_used(model: Any) -> None:
    reader = Reader(model, 10**8)
    ask(reader, QUESTION)
    ids = [*QUESTION, *LONG, 22]
    assert ask(reader, ids, tell=lambda *_: reader.memory.resize(0), recalled=lambda _: reader.memory.resize(0)) == (
        expected(model, ids)
    )
    assert reader.memory.bytes == 0


def test_progress_is_told_in_tokens(model: Any) -> None:
    reader, told = Reader(model, 10**8), []
    reader.chunk = 64
    ask(reader, QUESTION, tell=lambda progress, *_: told.append(progress))
    assert told == [f"reading {start} of 163 tokens" for start in (0, 64, 128)]
    told.clear()
    ask(reader, QUESTION, tell=lambda progress, *_: told.append(progress))
    assert told == []


def test_two_threads_by_turns_do_not_mix(model: Any) -> None:
    reader, shares = Reader(model, 10**8), Shares(seconds=0)
    reader.chunk = 32
    prompts = [QUESTION, [2, *LONG[::-1], 22], [*QUESTION, 25], with_picture(*LONG)]
    found: dict[int, list[int]] = {}
    turns: list[int] = []

    def run(number: int) -> None:
        def let_others() -> bool:
            shares.pass_on()
            turns.append(number)
            return False

        pixels = picture(0) if SOFT in prompts[number] else None
        with shares.turn():
            found[number] = ask(reader, prompts[number], pixels, stop=let_others)

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(a != b for a, b in itertools.pairwise(turns)) > 50
    for number, prompt in enumerate(prompts):
        assert found[number] == expected(model, prompt, picture(0) if SOFT in prompt else None)


def test_shares_are_equal() -> None:
    shares, had = Shares(seconds=0.01), {"reads": 0.0, "asks": 0.0}
    over = time.monotonic() + 1

    def work(name: str, step: float) -> None:
        with shares.turn():
            while time.monotonic() < over:
                time.sleep(step)
                had[name] += step
                shares.pass_on()

    threads = [threading.Thread(target=work, args=each) for each in (("reads", 0.02), ("asks", 0.001))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(had.values()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, r"One prompt at a time: .*\(2, 3\)"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, "padding"),
        ({"num_beams": 2}, "num_beams: the reader writes one answer"),
        ({"cache_implementation": "static"}, "cache_implementation: the reader has a cache of its own"),
        ({"input_ids": torch.tensor([[2, 3, SOFT]])}, "1 soft tokens in the prompt, and 0 pictures"),
        ({"input_ids": torch.tensor([[2, 3, *4 * [SOFT]]]), "pixel_values": picture(0)}, "ends with a picture"),
    ],
)
def test_what_cannot_be_remembered_is_refused(model: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reader(model, 0).generate(**{"input_ids": torch.tensor([[2, 3, 4]]), **options})


def test_no_chunk_splits_a_picture(model: Any) -> None:
    ids = torch.tensor([[2] * 5 + [SOFT] * 4 + [3] * 3 + [SOFT] * 4 + [4] * 2])[0]
    key = key_of(ids, SOFT, [bytes([n]) * 32 for n in range(2)])
    for size in range(1, 20):
        start, edges = 0, []
        while start < len(ids) - 1:
            start = chunk_end(key, start, size, len(ids) - 1)
            edges.append(start)
        assert not set(edges) & {6, 7, 8, 13, 14, 15}
        assert edges[-1] == len(ids) - 1
        assert max(b - a for a, b in itertools.pairwise([0, *edges])) <= max(size, 4)


def test_a_large_models_chunks_are_smaller_on_a_cpu() -> None:
    from benchmarks.shapes import config_of

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    sizes = {name: chunk_size(config_of(name).get_text_config(), cpu) for name in ("270m", "1b", "4b", "12b", "27b")}
    assert sizes == {"270m": 512, "1b": 512, "4b": 512, "12b": 128, "27b": 128}
    assert chunk_size(config_of("27b").get_text_config(), cuda) == 512
