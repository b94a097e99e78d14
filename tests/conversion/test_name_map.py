"""The name map: every leaf once, every tensor once, both directions, and plain words for what does not fit.

Run: pytest tests/conversion/test_name_map.py
"""

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from conversion.errors import BadInput
from conversion.leaf_rules import Rearrangement
from conversion.name_map import entries, first_layout, match_leaves
from conversion.sizes import SIZES, published_config, recognize
from tests.conversion.helpers import tiny


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (tiny.text_config(), Gemma3ForCausalLM),
        (tiny.multimodal_config(), Gemma3ForConditionalGeneration),
    ],
)
def test_the_tensors_are_those_of_the_model(config, model):
    with torch.device("meta"):
        state = model(config).state_dict()
    theirs = {first_layout(name): tuple(tensor.shape) for name, tensor in state.items() if name != "lm_head.weight"}
    rows = config.get_text_config().vocab_size
    ours = {name: entry.tensor_shape for entry in entries(config, rows) for name in entry.tensors}
    assert ours == theirs


@pytest.mark.parametrize("config", [tiny.text_config(), tiny.multimodal_config()])
def test_there_and_back(config):
    rng = np.random.default_rng(0)
    for entry in entries(config, tiny.ROWS):
        leaf = rng.standard_normal(entry.leaf_shape)
        tensors = entry.rule.axes.to_tensors(leaf)
        assert len(tensors) == len(entry.tensors)
        assert all(tensor.shape == entry.tensor_shape for tensor in tensors)
        assert (entry.rule.axes.to_leaf(tensors, entry.leaf_shape) == leaf).all()


def test_rearrangements_against_numpy():
    q = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert (Rearrangement("N D H -> (N H) D").to_tensors(q)[0] == q.transpose(0, 2, 1).reshape(8, 3)).all()
    assert (Rearrangement("N H D -> D (N H)").to_tensors(q)[0] == q.reshape(6, 4).T).all()
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert (Rearrangement("X Y C W -> W C X Y").to_tensors(kernel)[0] == kernel.transpose(3, 2, 0, 1)).all()
    keys, values = Rearrangement("T K D H -> T (K H) D").to_tensors(kernel[:2])
    assert (keys == kernel[0].transpose(0, 2, 1).reshape(15, 4)).all()
    assert (values == kernel[1].transpose(0, 2, 1).reshape(15, 4)).all()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
@pytest.mark.parametrize("variant", ["it", "pt"])
def test_published_sizes_are_recognized(size, variant):
    config = published_config(size, variant)
    shapes = {entry.leaf: entry.leaf_shape for entry in entries(config, 262144)}
    assert recognize(shapes) == size
    matched, donated = match_leaves(shapes, config)
    assert len(matched) == len(shapes)
    assert not donated
    text = config.get_text_config()
    assert text.vocab_size - 262144 == (64 if size.multimodal else 0)
    assert [i for i, kind in enumerate(text.layer_types) if kind == "full_attention"] == list(range(5, size.layers, 6))
    assert text.rope_parameters["full_attention"].get("factor") == (8.0 if size.multimodal else None)


def test_parameter_counts_are_the_published_ones():
    """Billions of parameters, SigLIP and embedding included, as Google's model cards round them."""
    counts = {}
    for size in SIZES:
        tensors = entries(published_config(size, "it"), 262144)
        counts[size.name] = sum(np.prod(entry.leaf_shape) for entry in tensors) / 1e9
    assert counts == pytest.approx({"270M": 0.268, "1B": 1.0, "4B": 4.3, "12B": 12.19, "27B": 27.43}, rel=5e-3)


def test_all_problems_in_one_message():
    config = tiny.multimodal_config()
    shapes = {entry.leaf: entry.leaf_shape for entry in entries(config, tiny.ROWS)}
    del shapes["transformer/layer_1/mlp/linear/w"]
    del shapes["transformer/embedder/mm_input_projection/w"]
    shapes["transformer/layer_0/attn/q_einsum/w"] = (4, 64, 16)
    shapes["transformer/layer_7/surprise/w"] = (3,)
    with pytest.raises(BadInput) as caught:
        match_leaves(shapes, config)
    message = str(caught.value)
    assert "in 4 places" in message
    assert "missing transformer/layer_1/mlp/linear/w [96, 64]" in message
    assert "missing transformer/embedder/mm_input_projection/w [32, 64]" in message
    assert "transformer/layer_0/attn/q_einsum/w is [4, 64, 16], the config says [4, 64, 32]" in message
    assert "unknown transformer/layer_7/surprise/w [3]" in message


def test_a_missing_projector_may_come_from_a_donor():
    config = tiny.multimodal_config()
    shapes = {entry.leaf: entry.leaf_shape for entry in entries(config, tiny.ROWS)}
    del shapes["transformer/embedder/mm_input_projection/w"]
    with pytest.raises(BadInput, match="--donor"):
        match_leaves(shapes, config)
    matched, donated = match_leaves(shapes, config, lambda tensors: True)
    assert donated == {"transformer/embedder/mm_input_projection/w"}
    assert len(matched) == len(shapes) + 1


def test_an_unknown_size_asks_for_a_config():
    shapes = {entry.leaf: entry.leaf_shape for entry in entries(tiny.text_config(), tiny.ROWS)}
    with pytest.raises(BadInput, match="--config"):
        recognize(shapes)
