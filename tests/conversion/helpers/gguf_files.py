"""Small GGUF files in the layout of Google's QAT ones, and single keys and tensors of such files changed."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from benchmarks.synthetic_blocks import write_model, write_tower
from conversion.small_files.tokenizer import CHAT_TEMPLATE, Piece, read_sentencepiece
from tests.conversion.helpers.awq_source import CONFIG
from tests.conversion.helpers.small_tokenizer import small_model

MODEL, TOWER = "gemma-3-tiny-it-q4_0.gguf", "mmproj-model-f16-tiny.gguf"
Type = gguf.GGMLQuantizationType


def small_pieces(folder: Path) -> list[Piece]:
    path = folder / "tokenizer.model"
    path.write_bytes(small_model().SerializeToString())
    return read_sentencepiece(path)


def make_files(folder: Path, embedding: str = "f16", tower: str | None = "f16", **options) -> Path:
    """Writes a model and its tower beside it; returns the path of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    write_model(folder / MODEL, CONFIG, small_pieces(folder), template, embedding, **options)
    if tower:
        write_tower(folder / TOWER, CONFIG, tower)
    return folder / MODEL


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as float32, read by the `gguf` library alone."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def rewritten(
    source: Path, target: Path, *, keys: dict[str, object] | None = None, tensors: dict[str, object] | None = None
) -> Path:
    """Copies a file with other values of some keys (None: without the key), and with some tensors changed.

    Args:
        source, target: the files.
        keys: string, number or bool by key.
        tensors: by name, None to leave it out, or (float32 array, type).
    """
    reader, keys, tensors = gguf.GGUFReader(source), keys or {}, tensors or {}
    architecture = keys.get("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in keys:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in keys.items():
        if value is not None and name != "general.architecture":
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensor.name not in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, changed in tensors.items():
        if changed is not None:
            values, kind = changed
            packed = gguf.quantize(values, kind) if kind not in (Type.F32, Type.F16) else values
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
