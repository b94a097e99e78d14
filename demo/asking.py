"""Models under examination: loaded, asked, and their exact answers counted."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from . import free_chats
from .exam import Question, questions_of
from .model import build_model, quantized_weights
from .skills import COUNTS
from .tokenizer import write_processor_files
from .weights import model_of_repo, read_state


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


def converse(model, processor, chats: list[free_chats.FreeChat]) -> list[list[str]]:
    """Has the free chats with a model, each answer before the next question; returns its answers, chat by chat."""
    so_far: list[list[tuple]] = [[] for _ in chats]
    for n in range(max(len(chat.turns) for chat in chats)):
        going = [i for i, chat in enumerate(chats) if n < len(chat.turns)]
        asked = []
        for i in going:
            turn = chats[i].turns[n]
            asked.append(Question([*so_far[i], (chats[i].pictures(turn), turn.question, "")]))
        said = answer(model, processor, asked, show=f"turn {n + 1}")
        for i, question, text in zip(going, asked, said, strict=True):
            so_far[i].append((*question.turns[-1][:2], text))
    return [[turn[2] for turn in turns] for turns in so_far]


def _score_free_chats(model, processor, file: Path, limit: int | None, errors: int) -> dict:
    chats = free_chats.load(file)[:limit]
    answers = converse(model, processor, chats)
    turns = [
        (turn, said)
        for chat, told in zip(chats, answers, strict=True)
        for turn, said in zip(chat.turns, told, strict=True)
    ]
    wrong = [(turn, said) for turn, said in turns if not free_chats.accepts(turn, said)]
    for turn, said in wrong[:errors]:
        print(f"    {turn.question!r}: {said!r}, accepted {turn.accepted}{' or honesty' if turn.honest else ''}")
    return {"right": len(turns) - len(wrong), "of": len(turns), "answers": answers}


def load_state(folder: Path):
    """Returns the fake-quantized model of a training state, in bfloat16, and its processor."""
    model = build_model()
    model.load_state_dict(read_state(folder)["model"])
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
    each = -(-count // len(COUNTS))
    questions = [q for skill in COUNTS for q in questions_of(skill, "test", each)][:count]
    said = answer(model, processor, questions, show="int4")
    meant = answer(load_dequantized(path), processor, questions, show="float")
    return float(np.mean([one == other for one, other in zip(said, meant, strict=True)]))


def score(model, processor, skills: list[str], split: str, limit: int | None, errors: int) -> dict[str, dict]:
    """Asks the questions of some skills and prints a table.

    Args:
        model: a Gemma3ForConditionalGeneration.
        processor: its processor.
        skills: keys of `COUNTS`, `FREE_CHATS`, some of `TUNING_CHATS`.
        split: "validation" or "test".
        limit: at most so many questions per skill.
        errors: print so many wrong answers per skill.

    Returns:
        For each skill, how many answers are right, of how many, and all answers.
    """
    record = {}
    print("| skill | questions | right |\n|---|---|---|", flush=True)
    for skill in skills:
        began = time.time()
        if skill not in COUNTS:
            file = free_chats.FILE.with_name(f"{skill}.txt")
            record[skill] = found = _score_free_chats(model, processor, file, limit, errors)
            share = 100 * found["right"] / found["of"]
            print(f"| {skill} | {found['of']} | {share:.2f} % |  {time.time() - began:.0f} s", flush=True)
            continue
        questions = questions_of(skill, split, min(COUNTS[skill], limit or COUNTS[skill]))
        answers = answer(model, processor, questions, show=skill)
        right = [said == q.expected for said, q in zip(answers, questions, strict=True)]
        record[skill] = {"right": sum(right), "of": len(right), "answers": answers}
        print(f"| {skill} | {len(right)} | {100 * np.mean(right):.2f} % |  {time.time() - began:.0f} s", flush=True)
        wrong = [n for n, ok in enumerate(right) if not ok][:errors]
        for n in wrong:
            print(f"    {questions[n].turns[-1][1]!r}: {answers[n]!r}, expected {questions[n].expected!r}")
    return record
