"""Asks a model the questions of every skill and counts exact answers: `python -m demo.evaluate`.

Every question goes the way a user's does: chat template, processor, greedy `generate`. An answer counts when it is the
expected sentence, letter by letter (easy-VQA: the expected word). In chats of several turns the earlier turns hold the
right answers. Pictures, backgrounds and places are drawn from seeds that training never uses; OpenMoji's art and an
eighth of the words are in no training picture; the easy-VQA questions are the public test split, all of them.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from . import art, chats
from .convert import model_of_repo
from .model import build_model, quantized_weights
from .pictures import (
    Picture,
    count_picture,
    easy_vqa,
    pair_picture,
    sample_picture,
    shapes_picture,
    text_picture,
    thing_picture,
)
from .questions import easy_answer
from .tokenizer import ROOT, write_processor_files
from .wording import HELD_OUT_WORDS

SEEDS = {"validation": 777_000, "test": 999_000}  # training uses [step, worker], steps stay far below


@dataclass
class Question:
    """A chat that ends in a question, and the one right answer."""

    turns: list[tuple[list[Image.Image], str, str]]  # (pictures, question, answer); the last answer is the expected one
    system: str = ""

    @property
    def expected(self) -> str:
        return self.turns[-1][2]

    def messages(self) -> list[dict]:
        """The chat in transformers' form, up to the last question."""
        messages = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        for pictures, question, answer in self.turns:
            content = [{"type": "image", "image": picture} for picture in pictures] + [
                {"type": "text", "text": question}
            ]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages[:-1]


def _first_questions(pictures: list[Picture]) -> list[Question]:
    return [Question([([p.image], *p.questions[0])]) for p in pictures]


def _naming(rng: np.random.Generator, count: int, styles: tuple[str, ...]) -> list[Question]:
    """Every thing equally often, by open questions and by questions for its kind."""
    things = [thing for thing in art.THINGS if any(thing in art.load_sprites()[s] for s in styles)]
    questions = []
    for n in range(count):
        picture = thing_picture(rng, things[n % len(things)], styles, distort=False)
        last = 2 if art.KIND_OF[things[n % len(things)]] != "thing" else 1
        questions.append(Question([([picture.image], *picture.questions[int(rng.integers(last))])]))
    return questions


def _dialogue(rng: np.random.Generator, styles: tuple[str, ...]) -> Question:
    if rng.random() < 0.5:
        turns = chats.two_pictures(rng, styles).turns
    else:
        turns = []
        while len(turns) < 2:
            turns = chats.follow_up(rng, sample_picture(rng, styles), 4).turns
    return Question(turns[: int(rng.integers(2, len(turns) + 1))])


def questions_of(skill: str, split: str, count: int) -> list[Question]:
    """Returns the questions of one skill.

    Args:
        skill: a key of `SKILLS`.
        split: "validation" or "test".
        count: how many; easy-VQA's are at most those of the public set.

    Raises:
        KeyError: there is no such skill or split.
    """
    rng = np.random.default_rng([SEEDS[split], list(SKILLS).index(skill)])
    return SKILLS[skill](rng, split, count)


_STYLES = tuple(art.TRAIN_STYLES)
SKILLS = {
    "easy_vqa": lambda rng, split, count: [
        Question([([image], question, easy_answer(word))])
        for image, pairs in easy_vqa(split)
        for question, word in pairs
    ][:count],
    "naming": lambda rng, split, count: _naming(rng, count, _STYLES),
    "naming_new_style": lambda rng, split, count: _naming(rng, count, tuple(art.HELD_OUT_STYLE)),
    "pairs": lambda rng, split, count: _first_questions([pair_picture(rng, _STYLES) for _ in range(count)]),
    "counting": lambda rng, split, count: _first_questions([count_picture(rng, _STYLES) for _ in range(count)]),
    "reading": lambda rng, split, count: _first_questions(
        [text_picture(rng, HELD_OUT_WORDS, made_up=0.0) for _ in range(count)]
    ),
    "shapes": lambda rng, split, count: _first_questions([shapes_picture(rng) for _ in range(count)]),
    "dialogue": lambda rng, split, count: [_dialogue(rng, _STYLES) for _ in range(count)],
    "no_picture": lambda rng, split, count: [Question(chats.without_picture(rng).turns) for _ in range(count)],
}
COUNTS = {"easy_vqa": 9673, "naming": 1900, "naming_new_style": 1900} | dict.fromkeys(
    ("pairs", "counting", "reading", "shapes", "dialogue", "no_picture"), 1000
)


@torch.inference_mode()
def answer(model, processor, questions: list[Question], batch: int = 128, show: str = "") -> list[str]:
    """Returns the model's greedy answers, in the order of the questions.

    Args:
        model: a Gemma3ForConditionalGeneration.
        processor: its processor.
        questions: what to ask.
        batch: how many to ask at once.
        show: label of the progress bar; none when empty.
    """
    texts = [processor.apply_chat_template(q.messages(), add_generation_prompt=True, tokenize=False) for q in questions]
    order = sorted(
        range(len(questions)), key=lambda n: (sum(len(t[0]) for t in questions[n].turns) == 0, len(texts[n]))
    )
    answers = [""] * len(questions)
    starts = list(range(0, len(order), batch))
    for start in tqdm(starts, desc=show, disable=not show):
        for some in _with_and_without(order[start : start + batch], questions):
            images = [[image for turn in questions[n].turns for image in turn[0]] for n in some]
            # the template has written <bos> already
            inputs = processor(
                text=[texts[n] for n in some],
                images=images if any(images) else None,
                add_special_tokens=False,
                padding=True,
                return_tensors="pt",
            )
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            out = model.generate(**inputs, max_new_tokens=32, do_sample=False, top_k=None, top_p=None)
            said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for n, text in zip(some, said, strict=True):
                answers[n] = text.strip()
    return answers


def _with_and_without(some: list[int], questions: list[Question]) -> list[list[int]]:
    """Splits a batch into chats with and without pictures: the processor takes only either."""
    seeing = [n for n in some if any(turn[0] for turn in questions[n].turns)]
    blind = [n for n in some if n not in set(seeing)]
    return [part for part in (seeing, blind) if part]


def load_state(folder: Path):
    """Returns the fake-quantized model of a training state, in bfloat16, and its processor."""
    model = build_model()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    with torch.no_grad():
        weights = quantized_weights(model, torch.float32)
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    with tempfile.TemporaryDirectory() as files:
        write_processor_files(AutoTokenizer.from_pretrained(folder / "tokenizer"), Path(files))
        processor = AutoProcessor.from_pretrained(files)
    model.generation_config.eos_token_id = [1, 5]
    model.generation_config.pad_token_id = 0
    return model.bfloat16().eval(), processor


def load_checkpoint(path: Path):
    """Returns the int4 model of a converted repository and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype=torch.bfloat16)
    return model.eval(), AutoProcessor.from_pretrained(path)


def load_dequantized(path: Path):
    """Returns the float model that a converted repository stands for, in bfloat16: the trained one, stock classes.

    Its weights are, bit for bit, those of the Kaggle-layout checkpoint that the repository was made from: the
    conversion proves it for every element, and `demo.convert` repeats it.
    """
    model = model_of_repo(path)
    model.generation_config.eos_token_id = [1, 5]
    model.generation_config.pad_token_id = 0
    return model.bfloat16().eval()


def agreement(path: Path, count: int) -> float:
    """Asks the int4 repository and the float weights behind it the same questions, of all skills alike.

    Args:
        path: converted repository.
        count: how many questions.

    Returns:
        The share of answers that are the same.
    """
    model, processor = load_checkpoint(path)
    each = -(-count // len(SKILLS))
    questions = [q for skill in SKILLS for q in questions_of(skill, "test", each)][:count]
    said = answer(model, processor, questions, show="int4")
    meant = answer(load_dequantized(path), processor, questions, show="float")
    return float(np.mean([one == other for one, other in zip(said, meant, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT, help="converted repository to ask (default: this one)")
    parser.add_argument("--state", type=Path, help="ask the fake-quantized model of this training folder instead")
    parser.add_argument("--split", choices=SEEDS, default="test")
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--limit", type=int, help="at most so many questions per skill")
    parser.add_argument("--errors", type=int, default=0, help="print so many wrong answers per skill")
    parser.add_argument("--out", type=Path, help="write all answers here, as JSON")
    parser.add_argument("--agreement", type=int, help="only compare int4 and float answers to so many questions")
    options = parser.parse_args()

    torch.set_num_threads(2)
    if options.agreement:
        share = agreement(options.model, options.agreement)
        print(f"the same greedy answer to {100 * share:.2f} % of {options.agreement} questions")
        return
    model, processor = load_state(options.state) if options.state else load_checkpoint(options.model)
    record = {}
    print("| skill | questions | right |\n|---|---|---|", flush=True)
    for skill in options.skills:
        began = time.time()
        count = min(COUNTS[skill], options.limit or COUNTS[skill])
        questions = questions_of(skill, options.split, count)
        answers = answer(model, processor, questions, show=skill)
        right = [said == q.expected for said, q in zip(answers, questions, strict=True)]
        record[skill] = {"right": sum(right), "of": len(right), "answers": answers}
        print(f"| {skill} | {len(right)} | {100 * np.mean(right):.2f} % |  {time.time() - began:.0f} s", flush=True)
        wrong = [n for n, ok in enumerate(right) if not ok][: options.errors]
        for n in wrong:
            print(f"    {questions[n].turns[-1][1]!r}: {answers[n]!r}, expected {questions[n].expected!r}")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
