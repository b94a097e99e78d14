"""GGUF files for llama.cpp: the language model in Q4_0, the vision tower as an mmproj file.

Q4_0 (ggml's `block_q4_0`) is this project's grid in other words: blocks of 32 weights of a row, each a float16 scale
and 16 bytes; byte j holds weight j in its low nibble and weight j + 16 in its high one; weight = (nibble - 8) * scale.
So codes move over unchanged, and only scales that float16 does not hold are rounded.

Tensor names come from the `gguf` library; which metadata llama.cpp wants, and that it expects 1 added to RMSNorm
weights, follows its own Gemma 3 converter.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from transformers import Gemma3Config

from conversion.codes import GROUP_SIZE, dequantize
from conversion.errors import BadInput
from conversion.repos.awq_repo import AwqRepo

Type = gguf.GGMLQuantizationType
BLOCK_BYTES = 2 + GROUP_SIZE // 2
EMBEDDING_TYPES = {"q4_0": Type.Q4_0, "f16": Type.F16}


@dataclass
class Rounding:
    """What float16 does to the scales.

    Attributes:
        groups: how many there are.
        inexact: how many change.
        worst: the largest relative change.
    """

    groups: int = 0
    inexact: int = 0
    worst: float = 0.0


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; `blocks` yields consecutive parts of its bytes."""

    name: str
    shape: tuple[int, ...]
    type: Type
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        weights, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // weights * size


def pack(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int8 codes -8..7 [rows, columns] and float16 scales [rows, columns/32] -> Q4_0 bytes [rows, columns/32 * 18]."""
    halves = (codes + np.int8(8)).view(np.uint64).reshape(*scales.shape, 2, 2)  # eight codes in a number
    blocks = np.empty((*scales.shape, BLOCK_BYTES), np.uint8)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:] = (halves[..., 0, :] | halves[..., 1, :] << np.uint64(4)).view(np.uint8)
    return blocks.reshape(len(codes), -1)


def unpack(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_0 bytes [rows, columns/32 * 18] -> int8 codes [rows, columns], float16 scales; the inverse of `pack`."""
    blocks = blocks.reshape(len(blocks), -1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return nibbles.astype(np.int8).reshape(len(blocks), -1) - np.int8(8), scales


def write_language_model(repo: AwqRepo, path: Path, *, embedding: str = "q4_0") -> Rounding:
    """Writes the language model with its tokenizer.

    Args:
        repo: the converted repo.
        path: the file to write.
        embedding: `q4_0` keeps the codes; `f16` holds the products, exact where the scale is a normal bfloat16.

    Returns:
        What became of the scales.

    Raises:
        BadInput: llama.cpp does not run such a model, or the repo lacks its tokenizer.
    """
    vocabulary = Vocabulary.of(repo.path)
    rounding = Rounding()
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GEMMA3])
    _add_model_metadata(writer, repo)
    vocabulary.add_to(writer)
    _write(writer, _language_tensors(repo, len(vocabulary.tokens), EMBEDDING_TYPES[embedding], rounding))
    return rounding


def write_vision(repo: AwqRepo, path: Path) -> None:
    """Writes the vision tower and the projector: matrices in float16, patch and position embeddings in float32."""
    vision, config = repo.config.vision_config, repo.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
    writer.add_vision_projection_dim(repo.text_config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    pooled = vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image)
    writer.add_vision_projector_scale_factor(pooled)
    _write(writer, _vision_tensors(repo))


def tensor_name(repo: AwqRepo, module: str) -> str:
    """llama.cpp's name for the weight of a module of the language model."""
    names = _name_map(gguf.MODEL_ARCH.GEMMA3, repo.text_config.num_hidden_layers)
    return names.get_name(module.removeprefix("language_model.")) + ".weight"


def vision_tensor_name(config: Gemma3Config, name: str) -> str:
    """llama.cpp's name for a tensor of the vision tower or the projector."""
    stem, _, kind = name.replace("_weight", ".weight").rpartition(".")
    return f"{_name_map(gguf.MODEL_ARCH.MMPROJ, config.vision_config.num_hidden_layers).get_name(stem)}.{kind}"


_name_map = functools.cache(gguf.get_tensor_name_map)  # making one takes milliseconds


def _write(writer: gguf.GGUFWriter, tensors: list[OutputTensor]) -> None:
    """Header first, then the tensors as they come, so that none has to be in memory as a whole."""
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for tensor in tensors:
        written = sum(file.write(np.ascontiguousarray(block)) for block in tensor.blocks())
        if written != tensor.nbytes:
            raise ValueError(f"{tensor.name}: {written} bytes written, {tensor.nbytes} announced")
        writer.write_padding(file, written)
    writer.close()


def _language_tensors(repo: AwqRepo, tokens: int, embedding: Type, rounding: Rounding) -> list[OutputTensor]:
    def embedding_blocks() -> Iterator[np.ndarray]:
        for codes, scales in repo.embedding_blocks(tokens):
            if embedding == Type.Q4_0:
                yield pack(codes, _float16(scales, repo.embedding, rounding))
            else:
                yield _finite_float16(dequantize(codes, scales), repo.embedding)

    def linear_blocks(name: str) -> Iterator[np.ndarray]:
        codes, scales = repo.linear(name)
        yield pack(codes, _float16(scales, name, rounding))

    def norm_blocks(name: str) -> Iterator[np.ndarray]:
        shifted = repo.read(name).astype(np.float32) + 1
        yield shifted * np.float32(_query_factor(repo)) if name.endswith("q_norm.weight") else shifted

    tensors = [
        OutputTensor(
            tensor_name(repo, repo.embedding), (tokens, repo.text_config.hidden_size), embedding, embedding_blocks
        )
    ]
    for name in repo.linears:
        blocks = functools.partial(linear_blocks, name)
        tensors.append(OutputTensor(tensor_name(repo, name), repo.linear_shape(name), Type.Q4_0, blocks))
    for name in repo.plain:
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        blocks = functools.partial(norm_blocks, name)
        tensors.append(
            OutputTensor(tensor_name(repo, name.removesuffix(".weight")), repo.shape(name), Type.F32, blocks)
        )
    return tensors


def _vision_tensors(repo: AwqRepo) -> list[OutputTensor]:
    tensors = []
    for name in repo.plain:
        if not name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        shape = repo.shape(name)
        wide = len(shape) == 1 or ".embeddings." in name
        shift = 1 if "soft_emb_norm" in name else 0  # the projector's RMSNorm; SigLIP's LayerNorms have no such 1

        def blocks(name: str = name, shift: int = shift, wide: bool = wide) -> Iterator[np.ndarray]:
            values = repo.read(name).astype(np.float32) + np.float32(shift)
            yield values if wide else _finite_float16(values, name)

        tensors.append(
            OutputTensor(vision_tensor_name(repo.config, name), shape, Type.F32 if wide else Type.F16, blocks)
        )
    return tensors


def _add_model_metadata(writer: gguf.GGUFWriter, repo: AwqRepo) -> None:
    text = repo.text_config
    windowed = [(i + 1) % 6 != 0 for i in range(text.num_hidden_layers)]
    if [kind == "sliding_attention" for kind in text.layer_types] != windowed:
        raise BadInput(f"{repo.path}: llama.cpp knows Gemma 3 with a global layer at every sixth place only")
    rope = text.rope_parameters["full_attention"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(repo.path.resolve().name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_sliding_window(text.sliding_window)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_freq_base_swa(text.rope_parameters["sliding_attention"]["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _query_factor(repo: AwqRepo) -> float:
    """What the query's norm is multiplied with, because llama.cpp has no key for `query_pre_attn_scalar`.

    It divides by sqrt(hidden/heads) in a model of 62 layers, as the 27B is, and by sqrt(head_dim) in all others.
    """
    text = repo.text_config
    assumed = text.hidden_size // text.num_attention_heads if text.num_hidden_layers == 62 else text.head_dim
    return math.sqrt(assumed / text.query_pre_attn_scalar)


def _float16(scales: np.ndarray, name: str, rounding: Rounding) -> np.ndarray:
    exact = scales.astype(np.float64)
    rounded = _finite_float16(scales.astype(np.float32), name)
    change = np.abs(rounded.astype(np.float64) - exact) / exact
    rounding.groups += scales.size
    rounding.inexact += int(np.count_nonzero(change))
    rounding.worst = max(rounding.worst, float(change.max()))
    return rounded


def _finite_float16(values: np.ndarray, name: str) -> np.ndarray:
    largest = float(np.abs(values).max())
    if largest > float(np.finfo(np.float16).max):
        raise BadInput(f"{name}: holds {largest:.4g}, more than GGUF's float16 can; take another format")
    return values.astype(np.float16)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer in llama.cpp's words: SentencePiece's, which joins the neighbors whose joint has the best score.

    Attributes:
        tokens: texts by id.
        scores: of each token; only their order matters.
        kinds: gguf.TokenType of each token.
        special: ids of `bos`, `eos`, `unk`, `pad` and `eot`.
        chat_template: Jinja source, or None.
    """

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    special: dict[str, int]
    chat_template: str | None

    @classmethod
    def of(cls, repo: Path) -> Vocabulary:
        """Reads tokenizer.json and the chat template of a repo's folder.

        Raises:
            BadInput: there is none, or it is not of Gemma's kind.
        """
        path, template = repo / "tokenizer.json", repo / "chat_template.jinja"
        if not path.is_file():
            raise BadInput(f"{path}: missing; a GGUF file holds its tokenizer, so give --tokenizer when converting")
        values = json.loads(path.read_text(encoding="utf-8"))
        model, added = values["model"], {token["id"]: token for token in values["added_tokens"]}
        if model["type"] != "BPE" or not model["byte_fallback"]:
            raise BadInput(f"{path}: expected BPE with byte fallback as Gemma 3 has it, found {model['type']}")
        ids = model["vocab"] | {token["content"]: token["id"] for token in added.values()}
        # The image token has no row of its own; llama.cpp puts image features in its place by itself.
        if ids.get("<image_soft_token>") == len(ids) - 1:
            del ids["<image_soft_token>"]
        tokens = sorted(ids, key=ids.get)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise BadInput(f"{path}: token ids have gaps, so they are not rows of an embedding")
        joints = dict.fromkeys("".join(merge) for merge in model["merges"])  # best first, each once
        rank = {joint: -float(place) for place, joint in enumerate(joints)}

        def kind(token: str) -> gguf.TokenType:
            if token == model["unk_token"]:
                return gguf.TokenType.UNKNOWN
            if ids[token] in added:
                return gguf.TokenType.CONTROL if added[ids[token]]["special"] else gguf.TokenType.USER_DEFINED
            return gguf.TokenType.BYTE if token in BYTE_TOKENS else gguf.TokenType.NORMAL

        kinds = [kind(token) for token in tokens]
        user_defined = gguf.TokenType.USER_DEFINED
        names = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "eot": "<end_of_turn>"}
        return cls(
            # llama.cpp looks for user-defined tokens before it turns spaces into U+2581.
            [t.replace("\u2581", " ") if k == user_defined else t for t, k in zip(tokens, kinds, strict=True)],
            [rank.get(token, -float(len(rank))) for token in tokens],
            kinds,
            {name: ids[token] for name, token in names.items() if token in ids},
            template.read_text(encoding="utf-8") if template.is_file() else None,
        )

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(self.tokens)
        writer.add_token_scores(self.scores)
        writer.add_token_types(self.kinds)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
