"""The tensors and the metadata of a made-up GGUF file: drawn and written one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.formats.gguf_names import VISION, tensor_name
from conversion.name_map import entries
from conversion.small_files.tokenizer import Kind, Piece

Type = gguf.GGMLQuantizationType
POOL_BLOCKS = 1 << 20  # blocks of 32 weights that are written over and over
PLAIN = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: ml_dtypes.bfloat16}


def write_model(
    path: Path,
    config: Gemma3Config | Gemma3TextConfig,
    pieces: list[Piece],
    template: str | None,
    embedding: str = "f16",
    *,
    typed_as_text: bool = True,
    seed: int = 0,
) -> None:
    """Writes a language model in Q4_0.

    Args:
        path: the file.
        config: of the model.
        pieces: its vocabulary, one row of the embedding for each.
        template: of chats, None for a base model.
        embedding: type of the embedding, in lower case.
        typed_as_text: whether symbols are typed as ordinary text, as in Google's first files.
        seed: of the numbers.
    """
    writer = gguf.GGUFWriter(path, "gemma3")
    _describe(writer, config.get_text_config())
    _add_vocabulary(writer, pieces, template, typed_as_text)
    if isinstance(config, Gemma3Config):
        _describe_vision(writer, config)
    kinds = {}
    for entry in entries(config, len(pieces)):
        for name in entry.tensors:
            if not name.startswith(VISION):
                kind = Type[embedding.upper()] if entry.is_embedding else Type.Q4_0 if entry.int4 else Type.F32
                kinds[tensor_name(config, name)] = entry.tensor_shape, kind
    _write(writer, kinds, np.random.default_rng(seed))


def write_tower(path: Path, config: Gemma3Config, kind: str = "f16", *, seed: int = 1) -> None:
    """Writes the vision tower and the projector, with the keys of llama.cpp's converter."""
    vision, writer = config.vision_config, gguf.GGUFWriter(path, "clip")
    side = vision.image_size // vision.patch_size
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_projection_dim(config.get_text_config().hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu(True)
    if (factor := side // math.isqrt(config.mm_tokens_per_image)) != 4:
        writer.add_vision_projector_scale_factor(factor)
    kinds = {}
    for entry in entries(config, config.get_text_config().vocab_size):
        for name in entry.tensors:
            if name.startswith(VISION):
                wide = len(entry.tensor_shape) > 1 and ".embeddings." not in name
                kinds[tensor_name(config, name)] = entry.tensor_shape, Type[kind.upper()] if wide else Type.F32
    _write(writer, kinds, np.random.default_rng(seed))


def _describe(writer: gguf.GGUFWriter, text: Gemma3TextConfig) -> None:
    rope = text.rope_parameters["full_attention"]
    writer.add_context_length(text.max_position_embeddings)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(text.sliding_window)


def _add_vocabulary(writer: gguf.GGUFWriter, pieces: list[Piece], template: str | None, typed_as_text: bool) -> None:
    writer.add_tokenizer_model("llama")
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    writer.add_bos_token_id(ids["<bos>"])
    writer.add_eos_token_id(ids["<eos>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    kinds = {kind: int(kind) for kind in Kind}
    if typed_as_text:
        kinds[Kind.USER_DEFINED] = int(Kind.NORMAL)
    writer.add_token_types([kinds[piece.kind] for piece in pieces])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    if template:
        writer.add_chat_template(template)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_tokenizer_pre("default")


def _describe_vision(writer: gguf.GGUFWriter, config: Gemma3Config) -> None:
    vision = config.vision_config
    writer.add_uint32("gemma3.mm.tokens_per_image", config.mm_tokens_per_image)
    writer.add_uint32("gemma3.vision.attention.head_count", vision.num_attention_heads)
    writer.add_float32("gemma3.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    writer.add_uint32("gemma3.vision.block_count", vision.num_hidden_layers)
    writer.add_uint32("gemma3.vision.embedding_length", vision.hidden_size)
    writer.add_uint32("gemma3.vision.feed_forward_length", vision.intermediate_size)
    writer.add_uint32("gemma3.vision.image_size", vision.image_size)
    writer.add_uint32("gemma3.vision.num_channels", vision.num_channels)
    writer.add_uint32("gemma3.vision.patch_size", vision.patch_size)


def _write(writer: gguf.GGUFWriter, kinds: dict[str, tuple[tuple[int, ...], Type]], rng: np.random.Generator) -> None:
    """Writes header and tensors."""
    for name, (shape, kind) in kinds.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), _nbytes(shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    pools: dict[Type, np.ndarray] = {}
    for name, (shape, kind) in kinds.items():
        for part in _bytes(name, shape, kind, rng, pools):
            file.write(part)
        writer.write_padding(file, _nbytes(shape, kind))
    writer.close()


def _nbytes(shape: tuple[int, ...], kind: Type) -> int:
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // weights * size


def _bytes(
    name: str, shape: tuple[int, ...], kind: Type, rng: np.random.Generator, pools: dict[Type, np.ndarray]
) -> Iterator[memoryview]:
    """The bytes of a tensor, in pieces."""
    if len(shape) == 1:
        one = 1.0 if name.endswith("norm.weight") and not name.startswith("v.") else 0.0
        yield memoryview((one + rng.normal(0, 0.05, shape)).astype(PLAIN[kind])).cast("B")
        return
    if kind not in pools:
        pools[kind] = _pool(kind, rng)
    pool, left = memoryview(pools[kind]).cast("B"), _nbytes(shape, kind)
    start = int(rng.integers(len(pool) // 18)) * 18 if kind == Type.Q4_0 else 0  # so that tensors differ
    while left:
        piece = pool[start : start + left]
        yield piece
        left, start = left - len(piece), 0


def _pool(kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Numbers of a type, as bytes."""
    if kind in PLAIN:
        return rng.normal(0, 0.02, POOL_BLOCKS * 4).astype(PLAIN[kind]).view(np.uint8)
    if kind == Type.Q6_K:  # the library does not quantize to it; a block ends in its scale
        blocks = rng.integers(0, 256, (POOL_BLOCKS // 8, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        blocks[:, -2:] = rng.uniform(1e-6, 1e-5, len(blocks)).astype(np.float16)[:, None].view(np.uint8)
        return blocks.reshape(-1)
    if kind != Type.Q4_0:
        return gguf.quantize(rng.normal(0, 0.02, (256, 1024)).astype(np.float32), kind).reshape(-1)
    blocks = rng.integers(0, 256, (POOL_BLOCKS, 18), np.uint8)
    scales = (rng.uniform(0.001, 0.01, POOL_BLOCKS) * rng.choice([-1, 1], POOL_BLOCKS)).astype(np.float16)
    scales[::97], scales[50::97] = 0, 5e-7  # some zeros, some subnormal numbers
    blocks[:, :2] = scales[:, None].view(np.uint8)
    return blocks.reshape(-1)
