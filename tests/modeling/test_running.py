"""Generation, compilation and adapters on a loaded model."""

import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def load(repo, **kwargs):
    return AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, **kwargs)


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_equals_the_dequantized_model(text_repo, cache):
    model, prompt = load(text_repo, dtype=torch.float32), ids(2, 24)
    expected = text_repo.reference.generate(prompt, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(prompt, max_new_tokens=12, do_sample=False, cache_implementation=cache), expected)


def test_static_and_dynamic_cache_agree_in_bfloat16(text_repo):
    model, prompt = load(text_repo), ids(1, 24)
    dynamic = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert torch.equal(
        model.generate(prompt, max_new_tokens=12, do_sample=False, cache_implementation="static"), dynamic
    )


@pytest.mark.parametrize("cache", [None, "static"])
def test_left_padded_batch_with_rows_longer_than_the_window(text_repo, cache):
    """The window of the tiny model is 16 tokens: one row is shorter than it, two are longer."""
    model = load(text_repo, dtype=torch.float32)
    rows = [ids(1, length, seed=length)[0] for length in (9, 23, 40)]
    width = max(map(len, rows))
    batch = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    together = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False, cache_implementation=cache)
    for row, answer in zip(rows, together[:, width:], strict=True):
        alone = text_repo.reference.generate(row.unsqueeze(0), max_new_tokens=8, do_sample=False)
        assert torch.equal(answer, alone[0, len(row) :])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_compiles_in_one_graph(text_repo, dtype):
    model, prompt = load(text_repo, dtype=dtype), ids(1, 6)
    with torch.no_grad():
        compiled = torch.compile(model.forward, fullgraph=True)(prompt).logits
        eager = model(prompt).logits
    assert (compiled - eager).abs().max() <= (1e-4 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_trains_saves_and_loads(text_repo, tmp_path, dtype):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load(text_repo, dtype=dtype), config).train()
    batch = ids(2, 24)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    model.eval().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(load(text_repo, dtype=dtype), tmp_path)
        assert torch.equal(loaded(batch).logits, model(batch).logits)
    with pytest.raises(TypeError, match="Keep the LoRA adapter beside the model"):
        model.merge_and_unload()


def test_lora_gradients_equal_those_of_the_dequantized_model(text_repo):
    batch = ids(2, 24)
    gradients = []
    for base in (load(text_repo, dtype=torch.float32), text_repo.reference):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        model(batch, labels=batch).loss.backward()
        gradients.append({n.split("model.layers")[-1]: p.grad for n, p in model.named_parameters() if p.requires_grad})
        model.unload()
    ours, reference = gradients
    assert ours.keys() == reference.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-3, atol=1e-6)


def test_resizing_the_int4_embedding_is_refused(text_repo):
    with pytest.raises(TypeError, match="int4_embedding=False"):
        load(text_repo).resize_token_embeddings(400)
    model = load(text_repo)
    assert model.resize_token_embeddings(model.vocab_size) is model.get_input_embeddings()
    assert load(text_repo, int4_embedding=False).resize_token_embeddings(400).weight.shape[0] == 400


@pytest.mark.parametrize("id_", [-100, -1, 5000])
def test_an_id_that_is_no_token_is_an_error(text_repo, id_):
    with pytest.raises(IndexError, match=f"got .*{id_}"):
        load(text_repo)(torch.tensor([[2, id_, 5]]))


def test_pickling(text_repo):
    model = load(text_repo)
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(ids(1, 20)).logits, model(ids(1, 20)).logits)


def test_a_refused_cast_changes_nothing(text_repo):
    model = load(text_repo)
    with pytest.raises(TypeError, match="overflows float16"):
        model.half()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_moving_the_whole_model(text_repo):
    model, prompt = load(text_repo, dtype=torch.float32), ids(1, 20)
    with torch.no_grad():
        expected = model(prompt).logits
        assert model.to(torch.bfloat16).int4_backend in ("native-cpu", "aten-cpu")
        assert (model(prompt).logits.float() - expected).abs().max() < 0.3
    with pytest.raises(TypeError, match="overflows float16"):
        model.half()
