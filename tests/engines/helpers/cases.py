"""The models that engines are compared on, as repos and prompts.

    real_270m    the real Gemma 3 270M, text only, snapped to the int4 grid by real270m/comparison.py
    shipped      the checkpoint at the root (or another of its form: --checkpoint), with pictures

Scales are bfloat16, the one dtype that every engine holds exactly, except where float32 is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedModel

from conversion.export.export import export
from conversion.small_files.repo_files import CODE_FILES
from demo.flax_export import export_flax
from demo.gallery import QUESTIONS, draw
from demo.places import ROOT
from demo.shipping import convert
from demo.weights import weights_of_repo
from real270m import comparison
from tests.engines.drivers.jobs import Prompt

# For the shipped checkpoint, besides the questions of demo/gallery.py: chats as (picture or None, question) by turns.
MORE_CHATS = [
    [("rocket", "What is this?"), ("turtle", "And what is this?")],
    [("turtle", "What animal is it?"), (None, "Is it a fish?")],
    [("shapes", "How many shapes are there?")],
    [("apples", "What is in the picture?")],
    [("number", "What does it say?")],
    [(None, "What can you do?")],
    [(None, "Hello!")],
    [(None, "What animal is it?")],
    [(None, "Who are you?")],
    [(None, "Describe the picture.")],
    [(None, "What is the capital of France?")],
    [(None, "Thank you!")],
]


@dataclasses.dataclass
class Case:
    """A model to compare on.

    Attributes:
        repo: its AWQ repo, with the working tree's code.
        checkpoint: the Kaggle-layout checkpoint that the repo was converted from.
        prompts: 20 prompts.
    """

    repo: Path
    checkpoint: Path
    prompts: list[Prompt]

    def ours(self, dtype: torch.dtype) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.repo, trust_remote_code=True, dtype=dtype).eval()

    @property
    def soft_token(self) -> int:
        """The id of a soft token, -1 if the model does not see."""
        return json.loads((self.repo / "config.json").read_text()).get("image_token_index", -1)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        ends = json.loads((self.repo / "generation_config.json").read_text())["eos_token_id"]
        return ends if isinstance(ends, list) else [ends]

    @property
    def text_alone(self) -> Case:
        """The same model on the prompts without pictures."""
        return dataclasses.replace(self, prompts=[prompt for prompt in self.prompts if not len(prompt.pictures)])

    def exported(self, kind: str, folder: Path) -> Path:
        """The repo in another format."""
        export(self.repo, folder / kind, kind)
        return folder / kind


def real_270m(folder: Path, scale_dtype: str = "bfloat16") -> Case:
    """Converts it on first use; `folder` is scratch."""
    checkpoint, repo = comparison.CHECKPOINT, comparison.FOLDER / scale_dtype
    if not (checkpoint / "tokenizer.model").exists():
        comparison.kaggle_checkpoint(comparison.snapped_model())
    if not (repo / "conversion.json").exists():
        comparison.converted(scale_dtype)
    tokenizer = AutoTokenizer.from_pretrained(repo)
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in comparison.PROMPTS]
    blind = np.zeros((0, 0, 0, 3), np.uint8)
    return Case(_with_current_code(repo, folder), checkpoint / "checkpoint", [Prompt(p, p, blind) for p in prompts])


def shipped(repo: Path, folder: Path) -> Case:
    """The checkpoint in `repo`, whose files hold its source: codes times scales are the float32 leaves, exactly."""
    weights, config = weights_of_repo(repo)
    export_flax(weights, config, folder / "checkpoint")
    processor = AutoProcessor.from_pretrained(repo)
    pictures = draw()
    chats = [[question] for question in QUESTIONS] + MORE_CHATS
    prompts = [_chat_prompt(processor, pictures, chat) for chat in chats]
    return Case(_with_current_code(repo, folder), folder / "checkpoint", prompts)


def with_rope_factor(case: Case, folder: Path, *layers: str) -> Case:
    """The text-only case with the factor 8 that 4B and larger have in their global layers, here in layers of these
    types; its first prompts.
    """
    repo = folder / "-".join(layers)
    shutil.copytree(case.repo, repo, symlinks=True)
    file = repo / "config.json"
    settings = json.loads(file.read_text())
    for kind in layers:
        settings["rope_parameters"][kind] |= {"rope_type": "linear", "factor": 8.0}
    file.unlink()
    file.write_text(json.dumps(settings))
    return dataclasses.replace(case, repo=repo, prompts=case.prompts[:6])


def cut_in_two(case: Case, folder: Path) -> Case:
    """The case, or where its heads are an odd number, the same model with one more, which adds nothing."""
    settings = json.loads((case.repo / "config.json").read_text())
    if settings.get("text_config", settings)["num_attention_heads"] % 2 == 0:
        return case
    weights, config = weights_of_repo(case.repo)
    text = config.text_config
    for name in [name for name in weights if name.startswith("language_model.")]:
        if name.endswith(".q_proj.weight"):
            weights[name] = np.pad(weights[name], [(0, text.head_dim), (0, 0)])
        elif name.endswith(".o_proj.weight"):
            weights[name] = np.pad(weights[name], [(0, 0), (0, text.head_dim)])
    text.num_attention_heads += 1
    convert(weights, config, case.repo, folder / "converted")
    return shipped(folder / "converted", folder)


def _chat_prompt(processor, pictures: dict[str, Image.Image], chat: list[tuple[str | None, str]]) -> Prompt:
    """A chat with its questions in one user turn each, and a short answer of ours between them."""
    messages = []
    for name, question in chat:
        if messages:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": "I see."}]})
        content = [{"type": "text", "text": question}]
        if name:
            content.insert(0, {"type": "image", "image": pictures[name]})
        messages.append({"role": "user", "content": content})
    whole = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    compact = np.array(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    seen = np.zeros((0, 0, 0, 3), np.uint8)
    if "pixel_values" in whole:
        seen = ((np.asarray(whole["pixel_values"]) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return Prompt(np.asarray(whole["input_ids"])[0], compact, seen)


def _with_current_code(repo: Path, folder: Path) -> Path:
    """A folder of links to the repo's files, with the working tree's modeling files in place of its own."""
    linked = folder / "repo"
    linked.mkdir()
    for file in [*repo.glob("*.json"), *repo.glob("*.jinja"), *repo.glob("*.safetensors")]:
        (linked / file.name).symlink_to(file.resolve())
    for name in CODE_FILES:
        shutil.copy(ROOT / name, linked)
    return linked
