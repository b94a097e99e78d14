"""A repository -> its processor and its model in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig
from transformers.utils.logging import set_tqdm_hook

from chat.repo import Repo, check_repo

BUGS = (TypeError, AttributeError, LookupError, NameError, AssertionError)  # of a program, not of a file or a machine


@dataclass(frozen=True)
class Loaded:
    """A model that can answer.

    Attributes:
        processor: A Gemma3Processor, or the tokenizer of a text-only model.
        model: In evaluation mode, on the GPU if there is one.
        facts: Size, memory, device and backend, in a line.
    """

    processor: Any
    model: Any
    facts: str


def load(repo: Repo, config: PretrainedConfig, tell: Callable[[str], None]) -> Loaded:
    """Loads a model, after fetching it where it is on the Hub.

    Args:
        repo: As from `find_repo`.
        config: Its configuration.
        tell: Takes what is being done, again and again.

    Raises:
        ModelError: The chat could not serve it.
        Exception: Whatever goes wrong in transformers or in the repository's own code; see `in_a_sentence`.
    """
    check_repo(repo)
    bar = progress_bar(tell)
    set_tqdm_hook(lambda factory, args, kwargs: bar(*args, **kwargs))
    try:
        folder = repo.folder
        if repo.on_hub:
            folder = snapshot_download(repo.id, ignore_patterns=["*.gguf", "*.bin"], tqdm_class=bar)
        tell("loading the processor")
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        tell("loading weights")
        sees = getattr(config, "vision_config", None) is not None
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        device_map = "cuda" if torch.cuda.is_available() else None
        model = auto.from_pretrained(folder, trust_remote_code=True, device_map=device_map).eval()
    finally:
        set_tqdm_hook(None)
    return Loaded(processor, model, model_facts(model, _count_parameters(config, auto)))


def in_a_sentence(error: BaseException) -> str:
    """An error's message in one line; with its class where it is a bug, or says nothing."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if isinstance(error, BUGS) or not text else text


def progress_bar(tell: Callable[[str], None]) -> type[tqdm]:
    """A progress bar class that says how far it is; a terminal shows it too, until it is full."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "leave": False})

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.fp.isatty():
                super().display(*args, **kwargs)
            share = f" {self.n / self.total:.0%}" if self.total else ""
            tell(f"{self.desc.rstrip(': ').lower() or 'loading'}{share}")

    return Bar


def _count_parameters(config: PretrainedConfig, auto: type) -> int:
    """The architecture's number of parameters, tied ones once; an int4 weight counts as the one it stands for."""
    plain = type(config).from_dict({**config.to_dict(), "quantization_config": None})
    with torch.device("meta"):
        return auto.from_config(plain).num_parameters()


def model_facts(model: Any, parameters: int) -> str:
    """Size, memory, device and backend, in a line."""
    int4_bytes = getattr(model, "int4_bytes", None)
    if int4_bytes is None:
        memory = f"{short(model.get_memory_footprint())}B in memory, none of it int4"
    else:
        memory = f"{short(int4_bytes)}B of int4 weights in memory"
    backend = getattr(model, "int4_backend", "transformers")
    return f"{short(parameters)} parameters · {memory} · device {model.device} · backend {backend}"


def short(number: int) -> str:
    """1234567 -> '1.2 M'."""
    return f"{number / 1e9:.1f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"
