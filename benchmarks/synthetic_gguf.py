"""GGUF files of any published size in the layout of Google's QAT Q4_0 ones, made up, written tensor by tensor.

    python -m benchmarks.synthetic_gguf --size 27b --output DIR [--layers N] [--embedding f16|q4_0|...] [--text-only]

Keys, their order and the types of the tokens are those that llama.cpp's gguf_dump.py prints of Google's
gemma-3-27b-it-q4_0.gguf: symbols are typed as ordinary text there. The vocabulary is Gemma's, out of `real270m`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.choices import NAMES

EMBEDDINGS = ("f16", "bf16", "f32", "q6_k", "q8_0", "q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=str.lower, choices=NAMES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--layers", type=int, help="write fewer layers than the published size has")
    parser.add_argument("--embedding", choices=EMBEDDINGS, default="f16")
    parser.add_argument("--text-only", action="store_true", help="without the mmproj file")
    arguments = parser.parse_args()

    from benchmarks.shapes import config_of
    from benchmarks.synthetic_blocks import write_model, write_tower
    from conversion.small_files.tokenizer import CHAT_TEMPLATE, read_sentencepiece
    from real270m.tokenizer_model import tokenizer_model_path

    config = config_of(arguments.size, arguments.layers)
    arguments.output.mkdir(parents=True)
    pieces, template = read_sentencepiece(tokenizer_model_path()), CHAT_TEMPLATE.read_text(encoding="utf-8")
    name = f"gemma-3-{arguments.size}-it-q4_0.gguf"
    write_model(arguments.output / name, config, pieces, template, arguments.embedding)
    if hasattr(config, "vision_config") and not arguments.text_only:
        write_tower(arguments.output / f"mmproj-model-f16-{arguments.size.upper()}.gguf", config, "f16")


if __name__ == "__main__":
    main()
