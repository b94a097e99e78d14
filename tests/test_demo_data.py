"""The fast training pipeline feeds the model exactly what the processor and the chat template would."""

import functools
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from demo import art, chats, data, exam, feeding, render, sprites
from demo.model import normalized
from demo.pictures import _made_up_word, crowd_picture, sample_picture
from demo.places import ROOT
from demo.questions import DESCRIBE
from demo.tokenizer import IMAGE_TOKENS, PADDED_VOCAB, TEXT_VOCAB, build_tokenizer, write_processor_files
from demo.wording import HELD_OUT_WORDS, TRAIN_WORDS, plural

pytestmark = pytest.mark.skipif(
    not sprites.sprites_path().exists(), reason="no art in the cache: `python -m demo.art` fetches and draws it"
)
STYLES = tuple(art.TRAIN_STYLES)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """The shipped processor; before there is one, the one that training would begin with."""
    if (ROOT / "processor_config.json").exists():
        return AutoProcessor.from_pretrained(ROOT)
    folder = tmp_path_factory.mktemp("processor")
    write_processor_files(build_tokenizer(), folder)
    return AutoProcessor.from_pretrained(folder)


def through_processor(processor, chat: chats.Chat) -> dict[str, torch.Tensor]:
    messages = exam.Question(chat.turns, chat.system).messages() + [
        {"role": "assistant", "content": [{"type": "text", "text": chat.turns[-1][2]}]}
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    images = [image for turn in chat.turns for image in turn[0]]
    return processor(text=text, images=images or None, add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize("kind", ["one picture", "two pictures", "no picture"])
def test_token_ids_and_pixels_equal_the_processors(processor, kind):
    rng = np.random.default_rng(5)
    encode = data.Encoder(processor.tokenizer)
    for _ in range(60):
        if kind == "one picture":
            chat = chats.follow_up(rng, sample_picture(rng, STYLES), 4)
        elif kind == "two pictures":
            chat = chats.two_pictures(rng, STYLES)
        else:
            chat = chats.without_picture(rng)
        chat.system = chats.system_prompt(rng)
        theirs = through_processor(processor, chat)
        ours = data.chat_piece(encode, chat).ids
        assert theirs["input_ids"][0].tolist() == ours + encode("\n")
        images = [image for turn in chat.turns for image in turn[0]]
        if images:
            np.testing.assert_allclose(
                theirs["pixel_values"], normalized(torch.from_numpy(data.stacked(images))), atol=1e-6
            )


def test_independent_questions_are_what_they_would_be_alone(processor):
    """The prefix plus one question of a packed row is the template's chat of that one question."""
    encode = data.Encoder(processor.tokenizer)
    batches = data.Batches(processor.tokenizer, pictures=16, seed=3)
    batch = next(iter(batches))
    checked = 0
    for ids, segment, parent in zip(batch["ids"], batch["segment"], batch["parent"], strict=True):
        for s in set(segment[(parent == 0) & (segment > 0)].tolist()):
            alone = ids[(segment == 0) | (segment == s)].tolist()
            text = processor.tokenizer.decode(alone)
            opening, asked = text.split("<end_of_image>\n\n")
            question, answer = asked.split("<end_of_turn>\n<start_of_turn>model\n")
            system = opening.split("<start_of_image>")[0].removeprefix("<bos><start_of_turn>user\n").strip()
            picture = Image.new("RGB", (render.SIZE, render.SIZE))
            chat = chats.Chat([([picture], question, answer.removesuffix("<end_of_turn>"))], system)
            assert through_processor(processor, chat)["input_ids"][0].tolist() == alone + encode("\n")
            checked += 1
    assert checked > 10


def test_a_batch_has_the_promised_shape(processor):
    batch = next(iter(data.Batches(processor.tokenizer, pictures=8, seed=0)))
    assert batch["ids"].shape == (12, data.ROW)
    assert batch["pixels"].shape == (8, 3, 64, 64)
    assert ((batch["ids"] == TEXT_VOCAB) == (batch["picture"] > 0)).all()
    assert batch["picture"].max() == 8 * IMAGE_TOKENS
    assert (batch["picture"].flatten()[batch["home"]] == torch.arange(1, 8 * IMAGE_TOKENS + 1)).all()
    assert (batch["target"][batch["target"] >= 0] < TEXT_VOCAB).all()
    assert TEXT_VOCAB < PADDED_VOCAB


def test_boxes_hold_what_the_answers_say():
    rng = np.random.default_rng(1)
    seen = dict.fromkeys(("reading", "shapes", "counting", "naming"), 0)
    for _ in range(300):
        picture = sample_picture(rng, STYLES)
        answers = " ".join(answer for _, answer in picture.questions)
        whats = [box.what for box in picture.boxes]
        if picture.skill == "reading":
            assert f"It says {''.join(whats)}." in answers
        if picture.skill == "shapes":
            assert all(f"{box.color} {box.what}" in answers for box in picture.boxes)
        if picture.skill == "counting":
            assert f"There {'is' if len(whats) == 1 else 'are'} {len(whats)}." in answers
        if picture.skill == "naming":
            assert all(what in answers.lower() for what in whats)
        for box in picture.boxes:
            middle = (box.left + box.right) / 2, (box.top + box.bottom) / 2
            assert all(0 <= place < render.SIZE for place in middle)
        if picture.skill in seen:
            seen[picture.skill] += 1
    assert min(seen.values()) > 20


@pytest.mark.parametrize("kind", ["count", "shapes"])
def test_a_description_is_asked_only_where_the_picture_decides_its_form(kind):
    """One thing alone, or one of each of two, is described by number only if some skill draws just that."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        picture = sample_picture(rng, STYLES, {kind: 1.0})
        described = [a for q, a in picture.questions if q in DESCRIBE or q == "What do you see?"]
        assert len(described) <= 1
        numbered = any(re.match("I see [2-6]|.* and [2-6]", answer) for answer in described)
        assert not described or numbered == (kind == "count")


def test_capitals_and_digits_stay_apart(processor):
    encode = processor.tokenizer
    assert encode.tokenize("CAT") == ["C", "A", "T"]
    assert encode.tokenize("1234") == ["1", "2", "3", "4"]
    for text in ("What animal is it?", "It is 1234.", "naïve 漢字", "line\n\n\nbreaks"):
        assert encode.decode(encode(text, add_special_tokens=False).input_ids) == text


def test_a_crowd_is_asked_about_what_it_holds_and_what_not():
    rng, said = np.random.default_rng(4), {"Yes.": 0, "No.": 0}
    for _ in range(100):
        picture = crowd_picture(rng, STYLES)
        names = [box.what for box in picture.boxes]
        assert len(set(names)) >= 2
        for question, answer in picture.questions:
            if question.startswith("Is there "):
                assert (answer == "Yes.") == (re.sub("^Is there (a|an) |[?]$", "", question) in names)
                said[answer] += 1
            elif question == "How many things are there?":
                assert answer == f"There are {len(names)}."
            else:
                asked = next(name for name in names if question == f"How many {plural(name)} are there?")
                assert re.fullmatch(r"There (is|are) (\d) .*", answer).group(2) == str(names.count(asked))
    assert min(said.values()) > 50


def test_held_out_material_is_never_sampled():
    rng = np.random.default_rng(0)
    made_up = {_made_up_word(rng) for _ in range(20_000)}
    assert not made_up & set(HELD_OUT_WORDS)
    assert len(made_up) > 5_000
    assert all(2 <= len(word) <= 5 and word.isalpha() for word in made_up)
    assert not set(HELD_OUT_WORDS) & set(TRAIN_WORDS)
    assert not set(art.HELD_OUT_STYLE) & set(art.LEARNED_FROM)
    assert len(art.THINGS) >= 150
    assert art.KIND_OF["turtle"] == "animal"


def _count_from(first: int, worker: int):
    n = first
    while True:
        yield {"n": torch.tensor([n, worker]), "share": torch.tensor([0.5]), "far": torch.tensor([-100, 2**20])}
        n += 1


def _fails(worker: int):
    yield {"n": torch.tensor([worker])}
    raise ValueError("no such color")


def test_batches_come_from_worker_processes_as_they_were_made():
    feeder = feeding.Feeder(functools.partial(_count_from, 40_000), workers=1, device=torch.device("cpu"))
    try:
        came = [batch for batch, _ in zip(feeder, range(20), strict=False)]
    finally:
        feeder.close()
    assert [batch["n"].tolist() for batch in came] == [[40_000 + n, 0] for n in range(20)]
    assert came[0]["n"].dtype == came[0]["far"].dtype == torch.int64
    assert came[0]["share"].dtype == torch.float32
    assert came[0]["far"].tolist() == [-100, 2**20]
    assert not any(worker.is_alive() for worker in feeder._workers)


def test_a_failing_worker_is_told():
    feeder = feeding.Feeder(_fails, workers=1, device=torch.device("cpu"))
    try:
        with pytest.raises(RuntimeError, match="no such color"):
            for _ in feeder:
                pass
    finally:
        feeder.close()


def test_a_batch_survives_its_way_to_the_trainer(processor):
    batch = next(iter(data.Batches(processor.tokenizer, pictures=8, seed=0)))
    small = {name: torch.from_numpy(array) for name, array in feeding.packed(batch).items()}
    for name, tensor in feeding.unpacked(small).items():
        assert tensor.dtype == batch[name].dtype, name
        torch.testing.assert_close(tensor, batch[name], rtol=1e-3, atol=1e-4)


def test_words_encoded_by_themselves_are_the_text_encoded_whole(processor):
    encode, whole = data.Encoder(processor.tokenizer), processor.tokenizer.backend_tokenizer
    rng, texts = (
        np.random.default_rng(11),
        ["", "a  b", " \n ", "x\n\n\n\n\ny", "1<2 and 3>2", "<start_of_turn>model\n", "na\u00efve!"],
    )
    for _ in range(40):
        texts += [text for pair in sample_picture(rng, STYLES).questions for text in pair]
        texts += [f"{text}<end_of_turn>\n" for _, *pair in chats.without_picture(rng).turns for text in pair]
    for text in texts:
        assert encode(text) == whole.encode(text, add_special_tokens=False).ids, text


def test_an_old_picture_is_shown_otherwise_with_the_same_colors_in_the_same_places():
    quarters = np.zeros((64, 64, 3), np.uint8)
    quarters[:32, :32], quarters[:32, 32:], quarters[32:, :32], quarters[32:, 32:] = (
        render.COLORS[name] for name in ("red", "green", "blue", "white")
    )
    pixels = torch.from_numpy(quarters.transpose(2, 0, 1).copy()).expand(64, 3, 64, 64)
    torch.manual_seed(0)
    other = feeding.varied(pixels)
    assert other.shape == pixels.shape
    assert other.dtype == torch.uint8
    assert not any(torch.equal(one, pixels[0]) for one in other)
    middles = other[:, :, 16::32, 16::32].float()  # of the quarters
    assert (middles - pixels[:, :, 16::32, 16::32].float()).abs().max() < 90
    assert (middles.mean(0) - pixels[0, :, 16::32, 16::32].float()).abs().max() < 25


def test_a_row_keeps_chats_apart_and_holds_all_pictures(processor):
    batch = next(iter(data.Batches(processor.tokenizer, pictures=16, seed=4)))
    own = batch["parent"] == batch["segment"]
    assert own.any(1).all()
    assert set(((batch["picture"] - 1) // IMAGE_TOKENS).flatten().tolist()) == set(range(-1, 16))
    chats_seen = batch["picture"][16:]
    several = [len(set(((row[row > 0] - 1) // IMAGE_TOKENS).tolist())) for row in chats_seen]
    assert max(several) >= 2
    again = next(iter(data.Batches(processor.tokenizer, pictures=16, seed=4)))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
