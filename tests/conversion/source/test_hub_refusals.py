"""AWQ and compressed-tensors repos that are not on our grid, not whole, or another model's: refused in a line each.

Run: pytest tests/conversion/source/test_hub_refusals.py
"""

import re
from pathlib import Path

import pytest
import torch

from tests.conversion.helpers.hub_repos import (
    AUTOAWQ,
    convert,
    llmcompressor,
    packed,
    tensors_of,
    with_groups,
    write_repo,
)


def without(*ends: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(ends)}


def changed(end: str, change):
    return lambda tensors: {name: change(t) if name.endswith(end) else t for name, t in tensors.items()}


def added(end: str, tensor: torch.Tensor):
    stem = "language_model.model.layers.0.self_attn.q_proj"
    return lambda tensors: tensors | {f"{stem}.{end}": tensor}


ANEW = "would have to be quantized anew"
GRID = "not on a symmetric grid of 32"
LAST = "layers.7.mlp.down_proj.qzeros"
AWQ_REFUSALS = {
    "asymmetric": (AUTOAWQ, changed(LAST, lambda zeros: zeros + 1), f"{LAST}: zero points other than 8, {GRID}; such"),
    "group 16": (
        AUTOAWQ | {"group_size": 16},
        dict,
        f"its group size is 16, {GRID} or a multiple of it; such .*{ANEW}",
    ),
    "group -1": (
        AUTOAWQ | {"group_size": -1},
        dict,
        f"its group size is -1, {GRID} or a multiple of it; such .*{ANEW}",
    ),
    "another group": (AUTOAWQ, lambda t: with_groups(t, 96), f"for 256 inputs, {GRID} or a multiple of it"),
    "8 bits": (AUTOAWQ | {"bits": 8}, dict, "its weights have 8 bits, not 4"),
    "gemv": (AUTOAWQ | {"version": "gemv"}, dict, "in AWQ's layout gemv, not gemm"),
    "act-order": (AUTOAWQ | {"desc_act": True}, dict, r"its inputs were reordered \(act-order, desc_act\)"),
    "no zeros": (AUTOAWQ, without("layers.0.mlp.up_proj.qzeros"), "layers.0.mlp.up_proj.qzeros is missing"),
    "no norm": (AUTOAWQ, without("layers.3.input_layernorm.weight"), "layers.3.input_layernorm.weight is missing"),
    "no tower": (AUTOAWQ, without("post_layernorm.bias"), "is missing; --donor takes .* --text-only does without"),
    "more": (AUTOAWQ, added("bias", torch.zeros(256)), r"q_proj.bias is not part of the model"),
    "not finite": (
        AUTOAWQ,
        changed("layers.2.mlp.up_proj.scales", lambda s: s * float("nan")),
        r"values of language_model.model.layers.2.mlp.up_proj.scales are not finite",
    ),
    "another shape": (
        AUTOAWQ,
        changed("layers.0.mlp.up_proj.qweight", lambda words: words[:, :8].contiguous()),
        r"layers.0.mlp.up_proj is \[64, 192\], not \[\d+, 192\]",
    ),
}
PACKED_REFUSALS = {
    "asymmetric": (llmcompressor(32, symmetric=False), dict, f"group_0: its weights are asymmetric, {GRID}; .*{ANEW}"),
    "zero points": (
        llmcompressor(32),
        added("weight_zero_point", torch.zeros(8, 6, dtype=torch.int32)),
        f"q_proj.weight_zero_point: asymmetric, {GRID}",
    ),
    "group 16": (llmcompressor(16), dict, f"its group size is 16, {GRID} or a multiple of it; .*{ANEW}"),
    "channel": (
        llmcompressor(-1, strategy="channel"),
        dict,
        f"a scale for each channel, {GRID} or a multiple of it; .*{ANEW}",
    ),
    "act-order": (llmcompressor(32, actorder="group"), dict, r"group_0: its inputs were reordered \(act-order group\)"),
    "reordered": (
        llmcompressor(32),
        added("weight_g_idx", torch.arange(192, dtype=torch.int32).flip(0) // 32),
        r"q_proj.weight_g_idx: its inputs were reordered \(act-order\)",
    ),
    "8 bits": (llmcompressor(32, num_bits=8), dict, "its weights are int of 8 bits, not int of 4"),
    "floats": (llmcompressor(32, type="float"), dict, "its weights are float of 4 bits, not int of 4"),
    "no scales": (llmcompressor(32), without("layers.0.mlp.up_proj.weight_scale"), "up_proj.weight_scale is missing"),
}


def refusal(source: Path, output: Path, capsys, *words: str) -> str:
    """What is said when a source is refused: a line; nothing is written."""
    assert convert(source, output, *words) == 2
    assert not output.exists() or not any(output.iterdir())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert_flax: error: ")]
    assert str(source) in line
    return line


@pytest.mark.parametrize("why", AWQ_REFUSALS)
def test_awq_repos_are_refused_in_a_line(ours, tmp_path, capsys, why):
    quantization, change, said = AWQ_REFUSALS[why]
    source = write_repo(tmp_path / "source", ours, change(tensors_of(ours)), quantization)
    assert_says(refusal(source, tmp_path / "repo", capsys), said)


@pytest.mark.parametrize("why", PACKED_REFUSALS)
def test_compressed_tensors_repos_are_refused_in_a_line(ours, tmp_path, capsys, why):
    quantization, change, said = PACKED_REFUSALS[why]
    source = write_repo(tmp_path / "source", ours, change(packed(tensors_of(ours))), quantization)
    assert_says(refusal(source, tmp_path / "repo", capsys), said)


SETTINGS = {
    "activations": (
        lambda q: q["config_groups"]["group_0"].update(input_activations={"num_bits": 8}),
        r"its activations are quantized too \(input_activations\)",
    ),
    "rotated": (lambda q: q.update(transform_config={"config_groups": {"u": {}}}), "its weights are rotated"),
    "sparse": (lambda q: q.update(sparsity_config={"format": "sparse-24-bitmask"}), r"stored sparsely \(sparse-24"),
    "another format": (
        lambda q: q["config_groups"]["group_0"].update(format="marlin-24"),
        "group_0 is stored as marlin-24, not pack-quantized",
    ),
    "nothing": (lambda q: q.update(config_groups={}), "has no config_groups"),
}


@pytest.mark.parametrize("why", SETTINGS)
def test_settings_of_compressed_tensors_are_read(ours, tmp_path, capsys, why):
    change, said = SETTINGS[why]
    quantization = llmcompressor(32)
    change(quantization)
    source = write_repo(tmp_path / "source", ours, packed(tensors_of(ours)), quantization)
    assert_says(refusal(source, tmp_path / "repo", capsys), said)


def assert_says(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line


@pytest.mark.parametrize("kind", ["gemma2", "gemma3n", "gemma4", "llama"])
def test_another_architecture_is_refused(ours, tmp_path, capsys, kind):
    source = write_repo(
        tmp_path / "source", ours, tensors_of(ours), AUTOAWQ, changed=lambda config: config | {"model_type": kind}
    )
    assert f"model_type is '{kind}', expected one of gemma3, gemma3_text" in refusal(source, tmp_path / "repo", capsys)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_part_of_a_set_is_named(ours, tmp_path, capsys, index):
    source = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ, index=index)
    (source / "model-00002-of-00003.safetensors").unlink()
    said = "1 of 3 files of weights are missing (model-00002-of-00003.safetensors); download them again"
    assert said in refusal(source, tmp_path / "repo", capsys)


def test_a_truncated_file_is_named(ours, tmp_path, capsys):
    source = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ)
    path = source / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path}: {path.stat().st_size} bytes, its header says" in refusal(source, tmp_path / "repo", capsys)


def test_an_embedding_in_floats_is_not_written_as_codes(ours, tmp_path, capsys):
    source = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ)
    line = refusal(source, tmp_path / "repo", capsys, "--embedding", "int4")
    assert_says(line, "has its embedding in floats; take --embedding plain, whose side file makes it int4 when loaded")
