"""The language model of a GGUF file: linears in Q4_0, norms in float32, the embedding in either Q4_0 or float16.

Which metadata llama.cpp wants, and that it expects 1 added to RMSNorm weights, follows its own Gemma 3 converter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from conversion.codes import dequantize
from conversion.errors import BadInput
from conversion.export.gguf_file import Float16, write_gguf
from conversion.export.gguf_vocabulary import Vocabulary
from conversion.formats import q4_0
from conversion.formats.gguf_names import VISION, tensor_name
from conversion.repos.awq_repo import AwqRepo
from conversion.tensor_spec import TensorSpec


def write_language_model(repo: AwqRepo, path: Path, *, embedding: str = "q4_0") -> list[str]:
    """Writes the language model with its tokenizer.

    Args:
        repo: the converted repo.
        path: the file to write.
        embedding: `q4_0` keeps the codes; `f16` holds the products, exact where the scale is a normal bfloat16.

    Returns:
        Lines for the user.

    Raises:
        BadInput: llama.cpp does not run such a model, float16 does not hold its scales, or it lacks its tokenizer.
    """
    if repo.kept:
        raise BadInput(f"{repo.path}: {repo.kept[0]} holds floats, and here every linear of a GGUF file is Q4_0")
    if embedding == "q4_0" and not repo.has_codes:
        raise BadInput(f"{repo.path}: its embedding lies on no int4 grid; --gguf-embedding f16 keeps it as floats")
    vocabulary = Vocabulary.of(repo.path)
    rows = len(vocabulary.tokens)
    metadata = _metadata(repo) | vocabulary.metadata()
    plain = Float16()
    specs, values = _specs(repo, rows, embedding), _values(repo, rows, embedding, plain)
    write_gguf(path, gguf.MODEL_ARCH.GEMMA3, metadata, specs, values)
    return plain.lines("embedding")


def _specs(repo: AwqRepo, rows: int, embedding: str) -> list[TensorSpec]:
    name = tensor_name(repo.config, repo.embedding)
    shape = (rows, repo.text_config.hidden_size)
    if embedding == "q4_0":
        specs = q4_0.specs(name.removesuffix(".weight"), shape, "float16")
    else:
        specs = [TensorSpec(name, "float16", shape)]
    for linear in repo.linears:
        stem = tensor_name(repo.config, linear).removesuffix(".weight")
        specs += q4_0.specs(stem, repo.linear_shape(linear), "float16")
    return specs + [TensorSpec(tensor_name(repo.config, norm), "float32", repo.shape(norm)) for norm in _norms(repo)]


def _values(repo: AwqRepo, rows: int, embedding: str, plain: Float16) -> Iterator[tuple[str, np.ndarray]]:
    """Names and contents of the tensors; parts of one follow each other."""
    stem = repo.embedding
    try:
        for values in _embedding(repo, rows, embedding, plain):
            yield tensor_name(repo.config, stem), values
        for stem in repo.linears:
            yield tensor_name(repo.config, stem), q4_0.pack(*repo.linear(stem))["weight"]
    except OverflowError as error:
        raise BadInput(f"{stem}: {error}") from error
    for norm in _norms(repo):
        shifted = repo.read(norm).astype(np.float32) + 1
        factor = np.float32(_query_factor(repo)) if norm.endswith("q_norm.weight") else np.float32(1)
        yield tensor_name(repo.config, norm), shifted * factor


def _embedding(repo: AwqRepo, rows: int, embedding: str, plain: Float16) -> Iterator[np.ndarray]:
    """Blocks of rows of the embedding, as the file has them."""
    if not repo.has_codes:
        yield from map(plain.round, repo.embedding_weights(rows))
        return
    for codes, scales in repo.embedding_blocks(rows):
        yield q4_0.pack(codes, scales)["weight"] if embedding == "q4_0" else plain.round(dequantize(codes, scales))


def _norms(repo: AwqRepo) -> list[str]:
    return [name for name in repo.plain if not name.startswith(VISION)]


def _metadata(repo: AwqRepo) -> dict[str, object]:
    text = repo.text_config
    windowed = [(i + 1) % 6 != 0 for i in range(text.num_hidden_layers)]
    if [kind == "sliding_attention" for kind in text.layer_types] != windowed:
        raise BadInput(f"{repo.path}: llama.cpp knows Gemma 3 with a global layer at every sixth place only")
    rope = text.rope_parameters["full_attention"]
    metadata = {
        "type": gguf.GGUFType.MODEL,
        "name": repo.path.resolve().name,
        "file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "quantization_version": gguf.GGML_QUANT_VERSION,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "head_count": text.num_attention_heads,
        "head_count_kv": text.num_key_value_heads,
        "key_length": text.head_dim,
        "value_length": text.head_dim,
        "layer_norm_rms_eps": text.rms_norm_eps,
        "sliding_window": text.sliding_window,
        "rope_freq_base": rope["rope_theta"],
        "rope_freq_base_swa": text.rope_parameters["sliding_attention"]["rope_theta"],
    }
    if rope["rope_type"] == "linear":
        metadata |= {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": rope["factor"]}
    return metadata


def _query_factor(repo: AwqRepo) -> float:
    """What the query's norm is multiplied with, because llama.cpp has no key for `query_pre_attn_scalar`.

    It divides by sqrt(hidden/heads) in a model of 62 layers, as the 27B is, and by sqrt(head_dim) in all others.
    """
    text = repo.text_config
    assumed = text.hidden_size // text.num_attention_heads if text.num_hidden_layers == 62 else text.head_dim
    return math.sqrt(assumed / text.query_pre_attn_scalar)
