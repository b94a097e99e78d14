"""The fused decoder layer: it computes one token wherever it may, and as transformers' layer does."""

import copy
import sys

import pytest
import torch
from gemma3_int4 import int4_cpu_fused
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS
from gemma3_int4.int4_cpu_library import library
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache
from transformers.models.gemma3 import modeling_gemma3 as stock

from tests.modeling.hardware import cpu_with, only
from tests.modeling.tiny_repo import build, text_config

pytestmark = pytest.mark.skipif(library() is None, reason="no AVX2 or no C compiler here")
IDS = torch.arange(3, 43)[None] * 7 % 250  # 40 tokens, more than the sliding window of 16
NEXT = [11, 47, 5, 200, 31, 8, 99, 150]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request) -> str:
    return request.param


@pytest.fixture
def model(text_repo, instruction_set):
    """A model on the kernels for each set of instructions; the layout of its weights is that of all of them."""
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True)
    with only(instruction_set, package(model)):
        yield model


@pytest.fixture
def fused(model, monkeypatch):
    return counted(model, monkeypatch)


def counted(model, monkeypatch) -> list[int]:
    """A list that grows with every layer that is computed in one call."""
    module = decode_module(model)
    taken, append = [], module._append
    monkeypatch.setattr(module, "_append", lambda cache: taken.append(1) or append(cache))
    return taken


def decode_module(model):
    return sys.modules[type(model.get_decoder().layers[0]).__module__]


def package(model) -> str:
    """The copy of our modules that transformers has made for the model."""
    return decode_module(model).__name__.rpartition(".")[0]


def layers(model):
    return model.get_decoder().layers


@torch.no_grad()
def step_by_step(model, ids=IDS, tokens=NEXT, cache=None, **options) -> torch.Tensor:
    """Logits after the prompt and after each of the tokens, [1 + tokens, V]."""
    cache = cache or DynamicCache(config=model.config.get_text_config())
    logits = [model(ids, past_key_values=cache, **options).logits[0, -1]]
    for token in tokens:
        if "attention_mask" in options:
            options["attention_mask"] = torch.cat([options["attention_mask"], torch.ones(1, 1).long()], dim=1)
        logits.append(model(torch.tensor([[token]]), past_key_values=cache, **options).logits[0, -1])
    return torch.stack(logits).float()


def unfused(model, monkeypatch, *args, **options) -> torch.Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(decode_module(model), "_layer_of", lambda *args: None)
        return step_by_step(model, *args, **options)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for bfloat16 rounding, which over six layers comes to one percent, fused or not."""
    assert (found - expected).norm() / expected.norm() < 0.02


def test_every_layer_is_fused_and_agrees(model, fused, text_repo, monkeypatch):
    found = step_by_step(model)
    assert len(fused) == len(layers(model)) * len(NEXT)
    assert_close(found, unfused(model, monkeypatch))
    with torch.no_grad():
        exact = text_repo.reference(torch.cat([IDS, torch.tensor([NEXT])], dim=1)).logits[0, IDS.shape[1] - 1 :]
    assert (found - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("length", [24, 2100])  # beyond 2,048, values are mixed by positions
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(model, fused, threads, length, monkeypatch):
    ids = torch.randint(3, 256, (1, length), generator=torch.Generator().manual_seed(7))
    expected = unfused(model, monkeypatch, ids)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with cpu_with(package(model)):
            assert_close(step_by_step(model, ids), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("scale_dtype", "heads", "head_dim"), [(torch.float16, 4, 64), (torch.float32, 8, 96)])
def test_other_scale_dtypes_and_one_key_head(scale_dtype, heads, head_dim, tmp_path, monkeypatch):
    sizes = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": head_dim}
    config = text_config(**sizes, query_pre_attn_scalar=48)
    repo = build(tmp_path, config, scale_dtype=scale_dtype, seed=3, q4_0=True)
    model = AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=torch.bfloat16)
    fused = counted(model, monkeypatch)
    found = step_by_step(model)
    assert fused
    assert_close(found, unfused(model, monkeypatch))
    with torch.no_grad():
        exact = repo.reference(torch.cat([IDS, torch.tensor([NEXT])], dim=1)).logits[0, IDS.shape[1] - 1 :]
    assert (found - exact).norm() / exact.norm() < 0.03


def test_multimodal_model(picture_repo, monkeypatch):
    model = AutoModelForImageTextToText.from_pretrained(picture_repo.path, trust_remote_code=True)
    fused = counted(model, monkeypatch)
    found = step_by_step(model)
    assert len(fused) == len(layers(model)) * len(NEXT)
    assert_close(found, unfused(model, monkeypatch))


def test_buffers_grow_as_often_as_needed(model, fused, monkeypatch):
    caches = sys.modules[f"{package(model)}.int4_cache"]
    monkeypatch.setattr(caches, "GROWTH_ROWS", 1)
    monkeypatch.setattr(caches, "GROWTH_SHARE", 0)
    cache = DynamicCache(config=model.config)
    found = step_by_step(model, cache=cache)
    assert_close(found, unfused(model, monkeypatch))
    assert [layer.get_seq_length() for layer in cache.layers] == [len(NEXT) + 40] * 6
    assert [layer.keys.shape[2] for layer in cache.layers] == [15] * 5 + [48]


def test_padding_is_masked(model, fused, monkeypatch):
    mask = torch.ones_like(IDS)
    mask[0, :30] = 0
    found = step_by_step(model, attention_mask=mask)
    assert fused
    assert_close(found, unfused(model, monkeypatch, attention_mask=mask))
    assert (found - step_by_step(model)).norm() / found.norm() > 0.05  # the mask matters


@torch.no_grad()
def sequences_by_step(model, rows: int, padded: bool) -> torch.Tensor:
    """Logits of several sequences after each of three tokens, [3, rows, V]; padded: by 0, 3, 6, ... on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 250, (rows, 43), generator=generator)
    mask = (torch.arange(43) >= 3 * torch.arange(rows)[:, None]).long() if padded else torch.ones_like(ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, logits = DynamicCache(config=model.config), []
    for part in (slice(40), slice(40, 41), slice(41, 42), slice(42, 43)):
        out = model(
            ids[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part], past_key_values=cache
        )
        logits.append(out.logits[:, -1])
    return torch.stack(logits[1:]).float()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("rows", "threads"), [(2, 2), (3, 1), (5, 3), (6, 2), (13, 3)])
def test_one_token_of_each_of_several_sequences(model, fused, monkeypatch, rows, threads, padded):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with cpu_with(package(model), amx=False, native_rows=5):  # from 6 on by the product for many rows
            found = sequences_by_step(model, rows, padded)
    finally:
        torch.set_num_threads(before)
    assert len(fused) == len(layers(model)) * 3
    with monkeypatch.context() as patched:
        patched.setattr(decode_module(model), "_layer_of", lambda *args: None)
        expected = sequences_by_step(model, rows, padded)
    for sequence in range(rows):
        assert_close(found[:, sequence], expected[:, sequence])


def test_position_tables_of_any_strides(model, fused, monkeypatch):
    rotary, forward = model.get_decoder().rotary_emb, type(model.get_decoder().rotary_emb).forward

    def strided(self, *args, **kwargs):
        cos, sin = forward(self, *args, **kwargs)
        return torch.cat([cos, cos], dim=-1)[..., : cos.shape[-1]], sin

    expected = sequences_by_step(model, 3, padded=True)
    assert fused
    fused.clear()
    monkeypatch.setattr(type(rotary), "forward", strided)
    found = sequences_by_step(model, 3, padded=True)
    assert not fused
    assert_close(found, expected)


def test_more_sequences_than_the_kernels_are_best_at_are_not_fused(model, fused):
    with cpu_with(package(model), amx=True, native_rows=2):
        sequences_by_step(model, 2, padded=False)
        assert fused
        fused.clear()
        sequences_by_step(model, 3, padded=False)
        assert not fused


def test_a_cache_that_others_change(model, fused, monkeypatch):
    def forked(cache):
        step_by_step(model, ids=IDS[:, :8], tokens=NEXT[:3], cache=cache)
        other = copy.deepcopy(cache)
        first = step_by_step(model, ids=torch.tensor([[9]]), tokens=[1, 2, 3], cache=cache)
        second = step_by_step(model, ids=torch.tensor([[9]]), tokens=[1, 2, 3], cache=other)
        assert torch.equal(first, second)
        return second

    def cropped(cache):
        step_by_step(model, ids=IDS[:, :8], tokens=[4, 5, 6], cache=cache)
        cache.crop(-2)
        return step_by_step(model, ids=torch.tensor([[9]]), tokens=[1, 2, 3], cache=cache)

    for case in (forked, cropped):
        found = case(DynamicCache(config=model.config))
        with monkeypatch.context() as patched:
            patched.setattr(decode_module(model), "_layer_of", lambda *args: None)
            expected = case(DynamicCache(config=model.config))
        assert_close(found, expected)
    assert fused


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}, {"cache_implementation": "static"}],
)
def test_generate_in_all_its_ways(model, options):
    torch.manual_seed(0)
    out = model.generate(IDS, max_new_tokens=12, **({"do_sample": False} | options), disable_compile=True)
    assert out.shape[1] == 52


def test_generate_is_the_same_with_and_without(model, fused, monkeypatch):
    found = model.generate(IDS, max_new_tokens=24, do_sample=False)
    assert fused
    with monkeypatch.context() as patched:
        patched.setattr(decode_module(model), "_layer_of", lambda *args: None)
        assert torch.equal(model.generate(IDS, max_new_tokens=24, do_sample=False), found)


@pytest.mark.parametrize(("rows", "beams"), [(3, 1), (1, 3)])
def test_generate_fuses_several_sequences(model, fused, rows, beams):
    ids = torch.cat([IDS + row for row in range(rows)])
    model.generate(ids, max_new_tokens=24, do_sample=False, num_beams=beams, eos_token_id=None)
    assert len(fused) == 23 * len(layers(model))


# Where nothing may be fused


def test_adapters_are_computed(model, fused, monkeypatch):
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], layers_to_transform=[0, 1], r=4))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.eval()
    found = step_by_step(adapted)
    assert len(fused) == 4 * len(NEXT)  # the other layers
    assert_close(found, unfused(model, monkeypatch))
    with adapted.disable_adapter():
        assert (step_by_step(adapted) - found).norm() / found.norm() > 0.05


def test_hooks_are_called(model, fused):
    step_by_step(model)
    seen = []
    handle = layers(model)[2].mlp.register_forward_hook(lambda *args: seen.append(1))
    fused.clear()
    step_by_step(model)
    assert len(seen) == 1 + len(NEXT)
    assert len(fused) == 5 * len(NEXT)
    handle.remove()
    fused.clear()
    step_by_step(model)
    assert len(fused) == 6 * len(NEXT)


def test_gradients_training_and_eager_attention_are_not_fused(model, fused):
    cache = DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)
    model(torch.tensor([[5]]), past_key_values=cache)  # gradients enabled
    model.train()
    step_by_step(model)
    model.eval()
    model.set_attn_implementation("eager")
    step_by_step(model)
    assert not fused


def test_exchanged_weights_are_noticed(model, fused, monkeypatch):
    before = step_by_step(model)
    with torch.no_grad():
        layers(model)[0].input_layernorm.weight.data = layers(model)[0].input_layernorm.weight.data + 0.5
        layers(model)[1].post_attention_layernorm.weight = torch.nn.Parameter(torch.ones(128).bfloat16())
    found = step_by_step(model)
    assert (found - before).norm() / before.norm() > 0.05
    assert_close(found, unfused(model, monkeypatch))
    taken = len(fused)
    model.float()
    step_by_step(model)
    assert len(fused) == taken
    model.bfloat16()
    assert_close(step_by_step(model), found)
    assert len(fused) > taken


def test_a_copied_model_has_its_own_pointers(model, fused):
    expected = step_by_step(model)
    other = copy.deepcopy(model)
    del model
    assert torch.equal(step_by_step(other), expected)


def test_hidden_states_are_given_when_asked_for(model):
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(IDS, past_key_values=cache)
        out = model(torch.tensor([[5]]), past_key_values=cache, output_hidden_states=True)
    assert [tuple(state.shape) for state in out.hidden_states] == [(1, 1, 128)] * 7


def test_saving_does_not_know_of_it(model, tmp_path, instruction_set):
    step_by_step(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    with only(instruction_set, package(again)):
        assert torch.equal(step_by_step(again), step_by_step(model))


# Norms and the MLP


@pytest.mark.parametrize("rows", [1, 7, 600])
def test_norm_rounds_once(model, rows):
    norm = model.get_decoder().norm
    norm.weight.data = torch.randn(128).bfloat16()
    x = torch.randn(2, 128, rows).bfloat16().transpose(1, 2) * 30
    with torch.no_grad():
        found = norm(x)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * (1 + norm.weight.double())
    assert found.shape == x.shape
    assert ((found.double() - exact).abs() <= exact.abs() * (2**-8 + 1e-5)).all()
    assert torch.equal(norm(x).detach(), stock.Gemma3RMSNorm.forward(norm, x).detach())  # with gradients: not fused


def test_mlp_agrees_with_the_stock_one(model):
    mlp = layers(model)[0].mlp
    x = torch.randn(2, 40, 128).bfloat16() * 5
    x[0, 0] = 0
    with torch.no_grad():
        assert_close(mlp(x).float(), stock.Gemma3MLP.forward(mlp, x).float())


def test_what_an_mlp_writes_over_nobody_else_sees(model):
    mlp, x, seen = layers(model)[0].mlp, torch.randn(2, 40, 128).bfloat16(), []
    with torch.no_grad():
        expected = mlp(x)
        hook = mlp.gate_proj.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
        assert torch.equal(mlp(x), expected)
        hook.remove()
        kept = mlp.gate_proj(x)
        mlp.gate_proj.forward = lambda x: kept
        seen.append((kept, kept.clone()))
        assert torch.equal(mlp(x), expected)
    assert all(torch.equal(output, then) for output, then in seen)


@pytest.fixture
def tower(picture_repo):
    """The vision tower of a model on a CPU that computes nothing in bfloat16."""
    model = AutoModelForImageTextToText.from_pretrained(picture_repo.path, trust_remote_code=True)
    with cpu_with(package(model), bf16_gemm=False):
        model.to("cpu")  # each move chooses the classes anew
        yield model.model.vision_tower


def pictures(tower) -> torch.Tensor:
    size = tower.config.image_size
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_vision_tower_without_bfloat16_arithmetic(tower):
    x = pictures(tower)
    float32 = copy.deepcopy(tower).float()
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    linear, convolution = tower.encoder.layers[0].mlp.fc1, tower.embeddings.patch_embedding
    for module, stock_class in ((linear, torch.nn.Linear), (convolution, torch.nn.Conv2d)):
        assert type(module) is type(copy.deepcopy(module))
        assert type(module).__mro__[1] is stock_class
    inputs = torch.randn(3, linear.in_features).bfloat16()
    with torch.no_grad():
        assert_close(tower(x.bfloat16()).last_hidden_state.float(), float32(x).last_hidden_state)
        assert_nearly_rounded_once(linear, inputs, inputs.double().norm(dim=1)[:, None])
        side = convolution.kernel_size[0]
        patches = torch.nn.functional.unfold(x.bfloat16().double(), side, stride=side).norm(dim=1)
        assert_nearly_rounded_once(convolution, x.bfloat16(), patches.view(len(x), 1, *[x.shape[-1] // side] * 2))


def assert_nearly_rounded_once(module, inputs: torch.Tensor, lengths: torch.Tensor) -> None:
    """Beside what rounding to bfloat16 does, fixed point rounds by a part of the lengths of what is multiplied."""
    found, exact = module(inputs), copy.deepcopy(module).double()(inputs.double())
    weights = module.weight.flatten(1).double().norm(dim=1)
    lengths = lengths * (weights if lengths.dim() == 2 else weights[:, None, None])
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + lengths * 2**-13).all()


def test_a_tower_is_compiled_in_one_graph(tower):
    x = pictures(tower).bfloat16()
    with torch.no_grad():
        expected = tower(x).last_hidden_state
        graph = torch.compile(tower.encoder, backend="eager", fullgraph=True)
        assert_close(tower.post_layernorm(graph(tower.embeddings(x)).last_hidden_state), expected)


def test_a_tower_s_rows_lie_behind_each_other(tower):
    with torch.no_grad():
        assert tower.embeddings(pictures(tower).bfloat16()).is_contiguous()


def test_pictures_pass_a_tower_one_after_the_other_unless_something_looks_on(tower, monkeypatch):
    x, read, layer = pictures(tower).bfloat16(), [], tower.encoder.layers[0]
    forward = type(layer).forward
    monkeypatch.setattr(
        type(layer), "forward", lambda self, x, *a, **k: read.append(len(x)) or forward(self, x, *a, **k)
    )
    with torch.no_grad():
        alone = torch.cat([tower(picture).last_hidden_state for picture in x.split(1)])
        read.clear()
        together = tower(x).last_hidden_state
        assert set(read) == {1}
        assert torch.equal(together, alone)
        before = torch.get_num_threads()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                assert torch.equal(tower(x).last_hidden_state, alone)
            finally:
                torch.set_num_threads(before)
        states = tower(x, output_hidden_states=True).hidden_states
    assert {len(state) for state in states} == {len(x)}
    assert len(states) == len(tower.encoder.layers) + 1
    read.clear()
    assert tower(x).last_hidden_state.requires_grad
    assert set(read) == {len(x)}


def test_a_tower_s_gelu_writes_over_what_nobody_else_sees(tower):
    mlp, seen = tower.encoder.layers[0].mlp, []
    inputs = torch.randn(3, 5, mlp.fc1.in_features, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    with torch.no_grad():
        expected = mlp.fc2(mlp.activation_fn(mlp.fc1(inputs)))
        assert_close(mlp(inputs), expected)
        for module in (mlp.fc1, mlp.activation_fn):
            hook = module.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
            assert torch.equal(mlp(inputs), expected)
            hook.remove()
    assert all(torch.equal(output, then) for output, then in seen)
    assert len(seen) == 2
    assert mlp(inputs).requires_grad


@pytest.mark.parametrize("options", [{"stride": 14}, {"stride": 14, "bias": False}, {"stride": 7}, {"padding": 3}])
def test_patches_of_any_size_and_other_convolutions(instruction_set, options):
    """14 * 14 * 3 numbers are no multiple of 8, and the last rows and columns of a picture are in no patch."""
    made = torch.nn.Conv2d(3, 40, 14, **options).bfloat16()
    x = torch.randn(2, 3, 61, 45, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = copy.deepcopy(made).double()(x.double())
    made.__class__ = int4_cpu_fused.Conv2d
    with only(instruction_set, "gemma3_int4"), cpu_with("gemma3_int4", bf16_gemm=False), torch.no_grad():
        found = made(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).norm() < 4e-3 * exact.norm()


def test_the_vision_tower_without_bfloat16_arithmetic_has_gradients(tower):
    convolution = tower.embeddings.patch_embedding
    tower(pictures(tower).bfloat16()).last_hidden_state.float().square().mean().backward()
    for weight in (convolution.weight, tower.encoder.layers[0].self_attn.q_proj.weight):
        assert weight.grad.dtype == torch.bfloat16
        assert weight.grad.isfinite().all()
        assert weight.grad.abs().max() > 0


def test_float32_models_keep_the_stock_modules(text_repo):
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        exact = text_repo.reference(IDS).logits
        assert (model(IDS).logits - exact).abs().max() < 1e-4


def test_other_backends_keep_the_stock_modules(text_repo, monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "aten-cpu")
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True)
    assert model.int4_backend == "aten-cpu"
    assert type(layers(model)[0]) is stock.Gemma3DecoderLayer
    assert type(model.get_decoder().norm) is stock.Gemma3RMSNorm
