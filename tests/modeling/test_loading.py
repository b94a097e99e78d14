"""from_pretrained and save_pretrained: what loads, what is refused, and that what is saved is what was loaded."""

import json
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AwqConfig,
    pipeline,
)
from transformers.dynamic_module_utils import get_relative_imports

from tests.modeling.tiny_repo import ROOT, build, multimodal_config, text_config

IDS = torch.arange(3, 43).view(1, 40)


def load_text(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


def load_pictures(path, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, **kwargs)


def on_disk(path: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in path.glob("model*.safetensors"):
        tensors |= load_file(file)
    return tensors


def edited(repo: Path, folder: Path, edit) -> Path:
    """A copy of a repo in one file, its tensors passed through `edit`."""
    shutil.copytree(repo, folder, ignore=shutil.ignore_patterns("model*.safetensors*"))
    save_file(edit(on_disk(repo)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(repo: Path, folder: Path, **changes) -> Path:
    shutil.copytree(repo, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize("embedding", ["plain", "int4"])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float32_logits_equal_the_dequantized_model(tmp_path, embedding, scale_dtype):
    repo = build(tmp_path, text_config(), embedding=embedding, scale_dtype=scale_dtype)
    model = load_text(repo.path, dtype=torch.float32)
    with torch.no_grad():
        expected = repo.reference(IDS).logits
        assert (model(IDS).logits - expected).abs().max() < 1e-5
    assert model.int4_backend == "reference"


def test_dtype_auto_is_that_of_the_config(text_repo):
    model = load_text(text_repo.path)
    assert model.dtype == torch.bfloat16
    assert model.int4_backend in ("native-cpu", "aten-cpu")
    with torch.no_grad():
        logits, expected = model(IDS).logits, text_repo.reference(IDS).logits
    sure = expected.topk(2).values.diff().abs().squeeze(-1) > 0.5
    assert torch.equal(logits.argmax(-1)[sure], expected.argmax(-1)[sure])


def test_pictures(picture_repo):
    ids = torch.randint(3, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 3:9] = torch.tensor([300, 320, 320, 320, 320, 301])
    ids[1, 20:26] = torch.tensor([300, 320, 320, 320, 320, 301])  # a second picture in the second row
    pixels = torch.rand(3, 3, 56, 56) * 2 - 1
    inputs = {"input_ids": ids, "token_type_ids": (ids == 320).long(), "pixel_values": pixels}
    model = load_pictures(picture_repo.path, dtype=torch.float32)
    with torch.no_grad():
        assert (model(**inputs).logits - picture_repo.reference(**inputs).logits).abs().max() < 1e-5
    ours = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours, picture_repo.reference.generate(**inputs, max_new_tokens=6, do_sample=False))


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForMultimodalLM])
def test_a_picture_model_by_its_other_names(picture_repo, auto_class):
    model = auto_class.from_pretrained(picture_repo.path, trust_remote_code=True)
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    assert model.int4_bytes > 0


def test_int4_embedding_can_be_left_plain(text_repo):
    plain = load_text(text_repo.path, int4_embedding=False)
    assert plain.get_input_embeddings().weight.dtype == torch.bfloat16
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    with_codes = load_text(text_repo.path)
    assert [type(weight).__name__ for weight in with_codes.lm_head.parameters()] == ["Int4Weight"]  # takes no memory
    with torch.no_grad():
        assert torch.equal(plain.get_input_embeddings()(IDS), with_codes.get_input_embeddings()(IDS))


def test_int4_embedding_required_but_absent(text_repo, tmp_path):
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    (repo / "int4_embedding.safetensors").unlink()
    assert load_text(repo).get_input_embeddings().weight.dtype == torch.bfloat16
    with pytest.raises(Exception, match="which this repo lacks"):
        load_text(repo, int4_embedding=True)


def test_packed_embedding_cannot_be_made_plain(tmp_path):
    repo = build(tmp_path, text_config(), embedding="int4")
    with pytest.raises(Exception, match="this repo stores it as int4 only"):
        load_text(repo.path, int4_embedding=False)


def test_a_foreign_side_file_is_noticed(text_repo, tmp_path):
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    file = repo / "int4_embedding.safetensors"
    save_file({name: scales * 1.25 for name, scales in load_file(file).items()}, file)
    with pytest.raises(Exception, match=r"does not belong to model\.embed_tokens\.weight"):
        load_text(repo)


def test_memory_holds_the_weights_once(text_repo):
    model = load_text(text_repo.path)
    packed = sum(t.nbytes for n, t in on_disk(text_repo.path).items() if "_proj." in n)
    embedding = on_disk(text_repo.path)["model.embed_tokens.weight"]
    packed += embedding.numel() // 2 + embedding.numel() // 32 * 5 // 2  # codes, bfloat16 scales, zeros
    assert model.int4_bytes <= 1.12 * packed
    held = {t.data_ptr(): t.nbytes for t in list(model.parameters()) + list(model.buffers())}
    assert (
        sum(held.values())
        <= model.int4_bytes + sum(p.nbytes for n, p in model.named_parameters() if "norm" in n) + 4096
    )


def new_layout(name: str) -> str:
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.")
    return f"model.{name}"


LAYOUTS = {
    "old": lambda name: name,
    "new": new_layout,
    "transformers 5": lambda name: new_layout(name).replace("vision_tower.vision_model.", "vision_tower."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_key_layouts(picture_repo, tmp_path, layout):
    rename = LAYOUTS[layout]
    repo = edited(picture_repo.path, tmp_path / "repo", lambda ts: {rename(n): t for n, t in ts.items()})
    ids = torch.arange(3, 40).view(1, -1)
    pixels = {"pixel_values": torch.rand(1, 3, 56, 56).bfloat16()}
    ids[0, 3:9] = torch.tensor([300, 320, 320, 320, 320, 301])
    with torch.no_grad():
        expected = load_pictures(picture_repo.path)(ids, token_type_ids=(ids == 320).long(), **pixels).logits
        assert torch.equal(load_pictures(repo)(ids, token_type_ids=(ids == 320).long(), **pixels).logits, expected)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_maps_that_fit(text_repo, device_map):
    assert load_text(text_repo.path, device_map=device_map).int4_backend in ("native-cpu", "aten-cpu")


def test_offloading_is_refused(text_repo, tmp_path):
    with pytest.raises(Exception, match="offloads part of the model"):
        load_text(text_repo.path, device_map={"model.embed_tokens": "cpu", "": "disk"}, offload_folder=tmp_path)
    with pytest.raises(Exception, match="offloads part of the model"):
        load_text(text_repo.path, device_map="auto", max_memory={"cpu": 200_000}, offload_folder=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, "float16"])
def test_float16_is_refused_with_the_reason(text_repo, dtype):
    with pytest.raises(Exception, match="overflow float16"):
        load_text(text_repo.path, dtype=dtype)


def test_float16_is_refused_from_the_config_too(text_repo, tmp_path):
    repo = with_config(text_repo.path, tmp_path / "repo", dtype="float16")
    with pytest.raises(Exception, match="overflow float16"):
        load_text(repo)


def test_a_quantization_config_is_refused(text_repo):
    with pytest.raises(Exception, match="int4 already"):
        load_text(text_repo.path, quantization_config={"quant_method": "awq", "bits": 8})


def test_no_quantization_config_is_refused(text_repo):
    with pytest.raises(Exception, match="it was given as None"):
        load_text(text_repo.path, quantization_config=None)


def test_its_own_quantization_config_may_be_given(text_repo):
    """As lm-eval does, which reads config.json first; it makes an object of it."""
    config = AwqConfig(bits=4, group_size=32, version="gemm", zero_point=True)
    assert load_text(text_repo.path, quantization_config=config).int4_bytes == load_text(text_repo.path).int4_bytes


def test_other_quantization_is_refused(text_repo, tmp_path):
    repo = with_config(text_repo.path, tmp_path / "repo", quantization_config={"quant_method": "awq", "bits": 8})
    with pytest.raises(Exception, match="'bits': 8"):
        load_text(repo)


def drop(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("model.layers.1.mlp.up_proj.qweight"), r"missing: model\.layers\.1\.mlp\.up_proj\.qweight"),
        (drop("model.layers.1.mlp.up_proj.scales"), r"missing: model\.layers\.1\.mlp\.up_proj\.scales"),
        (drop("model.norm.weight"), r"missing: model\.norm\.weight"),
        (drop("model.embed_tokens.weight"), r"missing: .*model\.embed_tokens\.weight"),
        (lambda ts: ts | {"model.extra.weight": torch.zeros(2)}, r"unexpected: model\.extra\.weight"),
        (lambda ts: ts | {"model.norm.weight": torch.zeros(7)}, r"mis-shaped: model\.norm\.weight is \(7,\)"),
        (
            lambda ts: ts | {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)},
            r"mis-shaped: model\.layers\.0\.mlp\.up_proj\.qweight is \(8, 8\), expected \(128, 24\)",
        ),
    ],
)
def test_wrong_tensors_are_errors(text_repo, tmp_path, edit, message):
    repo = edited(text_repo.path, tmp_path / "repo", edit)
    with pytest.raises(Exception, match=message) as caught:
        load_text(repo)
    assert type(caught.value).__name__ == "Int4LoadError"


def test_truncated_shards_are_named(text_repo, tmp_path):
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    shard = repo / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"model-00002-of-00002\.safetensors is damaged or incomplete"):
        load_text(repo)


def test_missing_shards_are_named(text_repo, tmp_path):
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    (repo / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Exception, match=r"model-00002-of-00002\.safetensors") as caught:
        load_text(repo)
    assert type(caught.value).__name__ == "Int4LoadError"


def test_errors_come_through_the_pipeline(picture_repo):
    """`pipeline` swallows the usual kinds of errors and tries the stock class, whose complaint is about gptqmodel."""
    with pytest.raises(Exception, match="overflow float16") as caught:
        pipeline("image-text-to-text", model=str(picture_repo.path), trust_remote_code=True, dtype=torch.float16)
    assert type(caught.value).__name__ == "Int4LoadError"


def test_config_loads_with_and_without_trust(picture_repo):
    for trust in (True, False):
        config = AutoConfig.from_pretrained(picture_repo.path, trust_remote_code=trust)
        assert type(config).__module__.startswith("transformers.models.gemma3")
        assert config.quantization_config["quant_method"] == "awq"
        # Of which a trainer looks for the first in transformers, and finds none where it can load ours.
        ours = ["Int4Gemma3ForConditionalGeneration"] if trust else []
        assert config.architectures == [*ours, "Gemma3ForConditionalGeneration"]


@pytest.mark.parametrize("embedding", ["plain", "int4"])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_saved_is_loaded(tmp_path, embedding, scale_dtype):
    repo = build(tmp_path / "repo", multimodal_config(), embedding=embedding, scale_dtype=scale_dtype)
    model = load_pictures(repo.path)
    model.save_pretrained(tmp_path / "saved", max_shard_size="400KB")
    before, after = on_disk(repo.path), on_disk(tmp_path / "saved")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    if embedding == "plain":
        side = [load_file(folder / "int4_embedding.safetensors") for folder in (repo.path, tmp_path / "saved")]
        assert side[0].keys() == side[1].keys()
        assert all(torch.equal(side[0][name], side[1][name]) for name in side[0])
    config = [json.loads((folder / "config.json").read_text()) for folder in (repo.path, tmp_path / "saved")]
    for key in ("architectures", "quantization_config", "auto_map", "dtype"):
        assert config[0][key] == config[1][key], key
    with torch.no_grad():
        assert torch.equal(load_pictures(tmp_path / "saved")(IDS).logits, model(IDS).logits)
    assert (tmp_path / "saved" / "int4_layers.py").exists()


def test_saving_another_state_dict_is_refused(text_repo, tmp_path):
    model = load_text(text_repo.path)
    state = model.state_dict()
    missing = min(state)
    del state[missing]
    with pytest.raises(TypeError, match=rf"not the model's own state_dict \({missing} "):
        model.save_pretrained(tmp_path, state_dict=state)


def test_the_same_file_imported_twice(text_repo, tmp_path):
    """Two cached revisions of the remote code in one process."""
    repo = shutil.copytree(text_repo.path, tmp_path / "other")
    with (repo / "int4_layers.py").open("a") as file:
        file.write("\n# another revision\n")
    first, second = load_text(text_repo.path), load_text(repo)
    assert type(first) is not type(second)
    with torch.no_grad():
        assert torch.equal(first(IDS).logits, second(IDS).logits)


PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub")
MODELING_FILES = [ROOT / "modeling_gemma3_int4.py", *ROOT.glob("int4_*.py")]


def test_the_modeling_files_import_each_other_only():
    for file in MODELING_FILES:
        for line in file.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                top = line.split()[1].split(".")[0]
                assert top in {"", *PACKAGES, *sys.stdlib_module_names}, (file, line)


def test_no_import_among_the_modeling_files_runs_back_up():
    """From the ground floor (codes) over the backends and their choice to the layers, the fused classes, the model."""
    imports = {file.stem: set(get_relative_imports(file)) for file in MODELING_FILES}
    del imports["modeling_gemma3_int4"]
    list(TopologicalSorter(imports).static_order())  # an error where there is a circle
    assert imports["int4_codes"] == set()
    backends = {"int4_compiled", "int4_cpu_native", "int4_cpu_aten", "int4_gpu_aten", "int4_gpu_triton"}
    for name in imports.keys() - {"int4_backend", "int4_layers", "int4_proof", "int4_record", "int4_trial"}:
        above_backends = imports[name] & {"int4_backend", "int4_layers", "int4_fused", "modeling_gemma3_int4"}
        assert not above_backends or name.endswith(("_fused", "_saving", "_repacking")), (name, above_backends)
    assert backends <= imports["int4_backend"]
    assert not imports["int4_layers"] & backends


def test_loading_needs_nothing_but_torch_and_transformers(text_repo):
    """In a fresh interpreter: no jax, tensorstore, gradio or triton comes along."""
    code = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({str(text_repo.path)!r}, trust_remote_code=True)\n"
        "print([name for name in ('jax', 'tensorstore', 'gradio', 'conversion', 'peft') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_saving_over_the_loaded_repo(text_repo, tmp_path):
    """Shards, index and side file of before must not stand beside a save of one file."""
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    model = load_text(repo)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="400KB")
    for folder in (repo, tmp_path / "sharded"):
        again = load_text(folder)
        again.save_pretrained(folder)
        assert torch.equal(load_text(folder)(IDS).logits, model(IDS).logits)
    plain = load_text(repo, int4_embedding=False)
    plain.get_input_embeddings().weight.data += 1  # no longer on the side file's grid
    plain.save_pretrained(repo)
    assert torch.equal(load_text(repo)(IDS).logits, plain(IDS).logits)
