"""A small tokenizer of the Gemma form, and the files of the processor around it.

Like Gemma's: byte-pair encoding with byte fallback, spaces written as U+2581, `<bos>` put in front, runs of newlines as
tokens of their own, digits and capital letters never merged into one token. Its words come from the demo's questions.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from . import art, chats
from .pictures import sample_picture
from .places import ROOT
from .wording import a, plural, sentence, the

TEXT_VOCAB = 1984  # rows of the trained embedding; as in Google's checkpoints 64 rows of zeros follow in the model
PADDED_VOCAB = TEXT_VOCAB + 64
IMAGE_TOKENS = 16  # soft tokens a picture becomes
IMAGE_SIZE = 64

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
IMAGE_SOFT_TOKEN = "<image_soft_token>"  # the first padded row, as Google has it
NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")


def _corpus() -> list[str]:
    """Questions and answers of every skill, numbers and words in capitals taken out: they are spelled."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(6000):
        lines += [text for pair in sample_picture(rng, tuple(art.TRAIN_STYLES)).questions for text in pair]
        lines += [text for _, *pair in chats.without_picture(rng).turns for text in pair]
    lines += [
        text for _ in range(300) for _, *pair in chats.two_pictures(rng, tuple(art.TRAIN_STYLES)).turns for text in pair
    ]
    for thing in art.THINGS:
        lines += [f"It is {a(thing)}. {the(thing)}, {plural(thing)}?", sentence(thing)] * 20
    lines += [line[0].lower() + line[1:] for line in lines]
    return [re.sub(r"\b[A-Z]{2,}\b|\d", "", line) for line in lines] + ["user", "model"] * 1000


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Learns the merges and returns the tokenizer of `TEXT_VOCAB` tokens and the image soft token."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()]
    )
    fixed = [*SPECIAL, *NEWLINES, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(c) for c in range(33, 127)] + ["▁"]
    learner.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(vocab_size=TEXT_VOCAB - len(fixed), initial_alphabet=letters, limit_alphabet=len(letters)),
    )
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(m) for m in learned["merges"]]
    merges += [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n")]
    vocabulary = {piece: n for n, piece in enumerate([*fixed, *pieces])}
    for n in range(len(vocabulary), TEXT_VOCAB):
        vocabulary[f"<unused{n}>"] = n

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer.add_special_tokens([*SPECIAL, IMAGE_SOFT_TOKEN])
    if tokenizer.token_to_id(IMAGE_SOFT_TOKEN) != TEXT_VOCAB:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, expected {TEXT_VOCAB + 1}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": IMAGE_SOFT_TOKEN,
        },
    )


def write_processor_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer, processor and chat template in the form that transformers reads since 4.57."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": IMAGE_SOFT_TOKEN}
    written = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 8192,
            "padding_side": "left",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "processor_class": "Gemma3Processor",
            **images,
            "extra_special_tokens": images,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "image_seq_length": IMAGE_TOKENS,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_pan_and_scan": False,
        },
        "processor_config.json": {"image_seq_length": IMAGE_TOKENS, "processor_class": "Gemma3Processor"},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(ROOT / "conversion" / "small_files" / "chat_template.jinja", folder / "chat_template.jinja")
