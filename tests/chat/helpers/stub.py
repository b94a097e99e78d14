"""A tiny random Gemma 3 checkpoint made of transformers' own classes, for tests that need a model but not its answers.

save_stub      writes it into a folder that `Engine` can load; vision=False writes a text-only one
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
)

CHAT_TEMPLATE = Path(__file__).parents[3] / "conversion" / "small_files" / "chat_template.jinja"
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
IMAGE_SPECIALS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
WORDS = ["▁what", "▁is", "▁this", "▁a", "user", "model", "start_of_turn", "turn", "image", "▁red", "▁circle"]
CONTEXT = 2048
ABOUT = "A stub: it speaks nonsense\nand knows nothing." + " It says so at as great a length as the shipped one." * 6


def save_stub(folder: Path, *, vision: bool = True) -> None:
    """Writes config, random weights (seed 0), tokenizer and processor to `folder`.

    The model never ends a turn by itself: it runs until max_new_tokens or until it is stopped.
    """
    tokenizer = _tokenizer(vision)
    vocab = {token: tokenizer.convert_tokens_to_ids(token) for token in [*SPECIALS, *IMAGE_SPECIALS.values()]}
    text = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "sliding_window": 512,
        "pad_token_id": vocab["<pad>"],
        "eos_token_id": vocab["<eos>"],
        "bos_token_id": vocab["<bos>"],
    }
    config = Gemma3Config(
        text_config=text,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=vocab["<start_of_image>"],
        eoi_token_index=vocab["<end_of_image>"],
        image_token_index=vocab["<image_soft_token>"],
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config) if vision else Gemma3ForCausalLM(config.text_config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.9,
        top_k=64,
        top_p=0.95,
        bos_token_id=vocab["<bos>"],
        pad_token_id=vocab["<pad>"],
        eos_token_id=[vocab["<eos>"], vocab["<end_of_turn>"]],
        suppress_tokens=[*vocab.values(), *range(tokenizer.vocab_size, 512)],
    )
    model.save_pretrained(folder)
    if vision:
        image_processor = Gemma3ImageProcessor(size={"height": 56, "width": 56})
        Gemma3Processor(
            image_processor, tokenizer, chat_template=CHAT_TEMPLATE.read_text(), image_seq_length=4
        ).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)


def _tokenizer(vision: bool) -> GemmaTokenizer:
    """Gemma's kind of tokenizer: BPE over characters and bytes, spaces as U+2581, runs of newlines as tokens."""
    newlines = ["\n" * n for n in range(1, 6)]
    pieces = SPECIALS + list(IMAGE_SPECIALS.values()) + newlines + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", *map(chr, range(0x21, 0x7F))]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            pieces.append(word[:end])
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(
        models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    backend.add_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    backend.add_tokens([AddedToken(token, normalized=False, special=True) for token in IMAGE_SPECIALS.values()])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in newlines])
    return GemmaTokenizer(
        tokenizer_object=backend,
        extra_special_tokens=IMAGE_SPECIALS,
        chat_template=None if vision else CHAT_TEMPLATE.read_text(),
    )


def save_examples(folder: Path) -> None:
    """Writes an examples/ folder as a demonstration checkpoint has one: pictures, questions, what the model can do."""
    examples = folder / "examples"
    examples.mkdir()
    for color in ("red", "blue"):
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).ellipse((16, 16, 80, 80), fill=color)
        picture.save(examples / f"{color}.png")
    questions = [{"picture": f"{color}.png", "question": f"Is this {color}?"} for color in ("red", "blue")]
    (examples / "answers.json").write_text(json.dumps(questions))
    (examples / "README.md").write_text(f"# Examples\n\n{ABOUT}\n\nMore.\n")
