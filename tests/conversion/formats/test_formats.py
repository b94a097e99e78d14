"""Every format: what is packed unpacks again, and has the names, shapes and dtypes that it announces.

Run: pytest tests/conversion/formats/test_formats.py
"""

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion import options
from conversion.errors import BadInput
from conversion.formats import HUB_FORMATS, awq, compressed_tensors, embedding, mlx, q4_0
from conversion.formats.words import pack_words
from conversion.small_files.model_card import COMMANDS
from conversion.tensor_spec import DTYPES, SCALES

FORMATS = (awq, compressed_tensors, embedding, mlx, q4_0)


def weights(outs: int, ins: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [out, in] and scales [out, in/32], as Q4_0 has them: of either sign, some zero."""
    rng = np.random.default_rng(5)
    scales = rng.uniform(0.01, 1, (outs, ins // 32)) * rng.choice([-1, 1], (outs, ins // 32))
    scales[::7] = 0
    scales = scales.astype(dtype)
    return rng.integers(-8, 8, (outs, ins)).astype(np.int8), scales


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.__name__.rpartition(".")[2])
@pytest.mark.parametrize("shape", [(8, 32), (40, 96), (264, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_format_keeps_codes_and_scales(format, shape, dtype):
    codes, scales = weights(*shape, dtype)
    parts = format.pack(codes, scales)
    found_codes, found_scales = format.unpack(parts)
    np.testing.assert_array_equal(found_codes, codes)
    expected = scales.astype(np.float16) if format is q4_0 else scales
    assert found_scales.dtype == expected.dtype
    np.testing.assert_array_equal(found_scales, expected)
    specs = {spec.name: spec for spec in format.specs("a.b", shape, SCALES)}
    assert set(specs) == {f"a.b.{part}" for part in parts}
    for part, values in parts.items():
        spec = specs[f"a.b.{part}"]
        if spec.dtype == "q4_0":
            assert spec.shape == shape
            assert values.shape == (shape[0], shape[1] // 32 * 18)
        else:
            assert values.shape == spec.shape
            assert values.dtype == (dtype if spec.dtype == SCALES else DTYPES[spec.dtype][1])


@pytest.mark.parametrize("format", [awq, compressed_tensors])
def test_constants_do_not_depend_on_the_weights(format):
    parts = format.pack(*weights(40, 96, np.float32))
    for part, values in format.constants((40, 96)).items():
        np.testing.assert_array_equal(parts[part], values)


@pytest.mark.parametrize("order", ["C", "F"])
def test_words_hold_codes_in_order(order):
    codes, _ = weights(96, 64, np.float32)
    packed = pack_words(np.asarray(codes, order=order)).view(np.uint32)
    for row, word, nibble in np.ndindex(96, 8, 8):
        assert int(packed[row, word]) >> 4 * nibble & 15 == codes[row, 8 * word + nibble] + 8


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_mlx_has_codes_from_zero_and_a_bias_that_is_exact(dtype):
    codes, scales = weights(40, 96, dtype)
    parts = mlx.pack(codes, scales)
    exact = {part: parts[part].astype(np.float64).repeat(32, axis=1) for part in ("scales", "biases")}
    u = np.stack([parts["weight"] >> 4 * nibble & 15 for nibble in range(8)], axis=-1).reshape(40, 96)
    products = codes * scales.astype(np.float64).repeat(32, axis=1)
    np.testing.assert_array_equal(u * exact["scales"] + exact["biases"], products)
    with pytest.raises(BadInput, match="biases other than -8 times the scales"):
        mlx.unpack(parts | {"biases": parts["biases"] + dtype(1)})


def test_mlx_is_told_the_rope_factor_and_the_sizes():
    """4B and larger: where it finds none of these names, MLX takes its defaults in silence."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    text = {"vocab_size": 64, "hidden_size": 32, "layer_types": kinds}
    text["rope_parameters"] = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    made = mlx.config({"text_config": {}, "mm_tokens_per_image": 4}, text)
    assert (made["vocab_size"], made["hidden_size"]) == (64, 32)
    told = {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6}
    told |= {"rope_global_base_freq": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    assert made["text_config"] == text | told | {"mm_tokens_per_image": 4}
    assert mlx.config(text, text) == {name: made[name] for name in ("quantization", "quantization_config")} | told

    few = text | {"layer_types": kinds[:4]}
    assert mlx.config(few, few)["sliding_window_pattern"] == 5  # no global layer
    odd = text | {"layer_types": kinds[::-1]}
    with pytest.raises(BadInput, match="one global layer in every 1"):
        mlx.config(odd, odd)


CODES = st.integers(1, 4).flatmap(
    lambda blocks: st.lists(st.integers(-8, 7), min_size=32 * blocks, max_size=32 * blocks)
)


@settings(deadline=None)
@given(codes=CODES, scale=st.floats(-1000, 1000, width=16))
def test_q4_0_keeps_codes_and_gguf_reads_the_products(codes, scale):
    codes = np.array([codes, codes[::-1]], np.int8)
    scales = np.full((2, codes.shape[1] // 32), scale, np.float16)
    parts = q4_0.pack(codes, scales)
    for expected, found in zip((codes, scales), q4_0.unpack(parts), strict=True):
        np.testing.assert_array_equal(expected, found)
    products = gguf.dequantize(parts["weight"], gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(products, codes * np.float32(scale))


def test_a_format_has_its_word_and_its_card():
    assert set(options.FORMATS) == {*HUB_FORMATS, "gguf"} == set(COMMANDS)
