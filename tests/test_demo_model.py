"""The demo's training forward is Gemma 3's own, and its weights are int4 from the first step.

Run with: python -m pytest tests/test_demo_model.py
"""

import copy
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from conversion.codes import dequantize
from conversion.source.int4_grid import recover
from demo import model as demo_model
from demo.asking import load_dequantized
from demo.data import IMAGE_TEXT, ROW
from demo.optimizers import Muon, orthogonal
from demo.training import Replayed, plain, rate_share


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    built = demo_model.build_model().eval()
    with torch.no_grad():
        built.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.05)
        weights = demo_model.quantized_weights(built, torch.float32)
        for name, parameter in built.named_parameters():
            parameter.copy_(weights[name])
    built.set_attn_implementation("eager")
    return built


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
def test_fake_quantized_weights_are_recovered_exactly(seed, size):
    weight = torch.from_numpy(np.random.default_rng(seed).normal(0, size, (8, 64)).astype(np.float32))
    weight[3, :32] = 0
    on_grid = demo_model.fake_quantize(weight)
    codes, scales = demo_model.int4_grid(weight)
    # straight through: w + (grid - w) is the grid value itself, because the two lie within a factor of two
    assert torch.equal(on_grid, (codes * scales).flatten(-2))
    assert codes.abs().max() <= 7
    assert torch.equal(scales, scales.bfloat16().float())
    exact = (codes * scales).flatten(-2).numpy()
    found = recover(exact)
    assert np.array_equal(dequantize(found.codes, found.scales), exact)


def test_shipped_weights_lie_on_the_grid_exactly(model):
    weights = demo_model.quantized_weights(model, torch.float32)
    quantized = [name for name in weights if demo_model.is_quantized(name)]
    assert len(quantized) == 6 * 7 + 1
    for name in quantized:
        codes, scales = demo_model.int4_grid(weights[name])
        assert torch.equal((codes * scales).flatten(-2), weights[name]), name


def test_gradients_pass_straight_through():
    weight = torch.randn(4, 32, requires_grad=True)
    slope = torch.randn(4, 32)
    (demo_model.fake_quantize(weight) * slope).sum().backward()
    assert torch.equal(weight.grad, slope)


def test_packed_questions_get_the_logits_of_the_stock_model(model):
    """Two independent questions in one row, one of them far away, against each asked alone."""
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))
    image = demo_model.normalized(drawn)
    soft = IMAGE_TEXT.count("<image_soft_token>")
    prefix = torch.tensor([2, 4, 300, 10, 6, *[demo_model.TEXT_VOCAB] * soft, 7, 9])
    questions = [torch.from_numpy(rng.integers(300, 1900, n)) for n in (9, 14)]

    n, pad = len(prefix), ROW - len(prefix) - 23
    spread = [torch.full((n,), 0), torch.full((9,), 1), torch.full((14,), 2), torch.full((pad,), -1)]
    batch = {
        "ids": torch.cat([prefix, *questions, torch.zeros(pad, dtype=torch.long)])[None],
        "segment": torch.cat(spread)[None],
        "parent": torch.cat([torch.zeros(n + 23, dtype=torch.long), torch.full((pad,), -1)])[None],
        "position": torch.cat([torch.arange(n), n + torch.arange(9), n + torch.arange(14), torch.zeros(pad)])[
            None
        ].long(),
        "pixels": drawn,
        "home": torch.arange(5, 5 + soft),
        "where": torch.arange(n, n + 23),
    }
    batch["picture"] = torch.where(batch["ids"] == demo_model.TEXT_VOCAB, batch["ids"].cumsum(1), 0)
    batch["picture"][batch["picture"] > 0] = 1 + torch.arange(soft)
    weights = {f"model.{k}": v for k, v in demo_model.quantized_weights(model, torch.float32).items()}
    with torch.no_grad():
        _, halfway, packed = functional_call(demo_model._Training(model), weights, (batch,), tie_weights=True)
        start = 0
        for question in questions:
            ids = torch.cat([prefix, question])[None]
            seen = ids == demo_model.TEXT_VOCAB
            alone = model(input_ids=ids, pixel_values=image, token_type_ids=seen.long(), output_hidden_states=True)
            stop = start + len(question)
            torch.testing.assert_close(packed[start:stop], alone.logits[0, n:], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(halfway[0], alone.hidden_states[3][seen], rtol=1e-3, atol=1e-3)
            start = stop


def test_answers_depend_on_the_picture(model):
    ids = torch.tensor([[2, 4, 300, 10, 6, *[demo_model.TEXT_VOCAB] * 16, 7, 9, 500]])
    kinds = (ids == demo_model.TEXT_VOCAB).long()
    with torch.no_grad():
        dark, light = (
            model(input_ids=ids, pixel_values=torch.full((1, 3, 64, 64), v), token_type_ids=kinds).logits[0, -1]
            for v in (-1.0, 1.0)
        )
    assert (dark - light).abs().max() > 1e-3


def test_orthogonal_brings_singular_values_near_one():
    stack = torch.randn(3, 64, 32)
    values = torch.linalg.svdvals(orthogonal(stack, rounds=6))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_lowers_a_loss_and_resumes():
    torch.manual_seed(0)
    target = torch.randn(16, 32)
    weight = torch.nn.Parameter(torch.zeros(16, 32))

    def steps(optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            loss = (weight - target).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    first = Muon([weight], lr=0.05, weight_decay=0.0)
    assert steps(first, 50) < 0.8 * target.square().mean()
    kept, value = copy.deepcopy(first.state_dict()), weight.detach().clone()
    steps(first, 3)
    ahead = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(value)
    again = Muon([weight], lr=0.05, weight_decay=0.0)
    again.load_state_dict(kept)
    steps(again, 3)
    assert torch.equal(weight.detach(), ahead)


def test_rates_warm_up_stay_and_fall_to_zero():
    assert rate_share(0.0, 0.4) == 0
    assert rate_share(0.3, 0.4) == 1
    assert rate_share(0.8, 0.4) == pytest.approx(0.5)
    assert rate_share(1.0, 0.4) == 0
    assert rate_share(1.2, 0.4) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU: a CUDA graph is replayed")
def test_a_replayed_step_leaves_the_gradients_of_its_batch():
    layer = torch.nn.Linear(8, 4, device="cuda")

    def loss(batch):
        return torch.nn.functional.cross_entropy(layer(batch["x"]), batch["target"])

    def batch():
        return {"x": torch.randn(16, 8, device="cuda"), "target": torch.randint(4, (16,), device="cuda")}

    step = Replayed(loss, [layer])
    for some in (batch(), batch(), batch()):
        layer.zero_grad(set_to_none=True)  # as an optimizer does
        value = step(some)
        found = [parameter.grad.clone() for parameter in layer.parameters()]
        layer.zero_grad(set_to_none=True)
        torch.testing.assert_close(value, plain(loss)(some))
        torch.testing.assert_close(found, [parameter.grad for parameter in layer.parameters()])


def test_a_model_survives_export_conversion_and_the_way_back(model, tmp_path):
    """Codes and scales come back bit for bit, and a second conversion writes the same bytes."""
    pytest.importorskip("orbax.checkpoint")
    from demo import shipping
    from demo.places import ROOT
    from demo.weights import weights_of_repo, weights_of_state

    state = {"model": model.state_dict()}
    (tmp_path / "state").mkdir()
    torch.save(state, tmp_path / "state" / "state.pt")
    weights, config = weights_of_state(tmp_path / "state")
    files = tmp_path / "files"
    files.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(ROOT / name, files / name)
    shipping.convert(weights, config, files, tmp_path / "repo")
    back = load_dequantized(tmp_path / "repo")
    for name, parameter in back.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16()), name
    shipping.convert(*weights_of_repo(tmp_path / "repo"), files, tmp_path / "again")
    assert shipping.differences(tmp_path / "repo", tmp_path / "again") == []
    assert len(list((tmp_path / "repo").glob("model-*.safetensors"))) >= 2


def test_a_state_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    from demo.weights import read_state

    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"model": {"weight": torch.arange(3.0)}}, tmp_path / "state.pt")
    assert read_state(tmp_path)["model"]["weight"].tolist() == [0, 1, 2]


def test_an_average_lies_between_the_checkpoint_and_the_runs(model, tmp_path):
    """The tower at its shares, all else at the others; the head stays the embedding."""
    from demo.average import average
    from demo.places import ROOT
    from demo.weights import model_of_repo, weights_of_state

    runs = [tmp_path / "run", tmp_path / "later"]
    for n, run in enumerate(runs, 1):
        (run / "tokenizer").mkdir(parents=True)
        state = {
            name: n * weight if weight.is_floating_point() else weight for name, weight in model.state_dict().items()
        }
        torch.save({"model": state, "head": {}}, run / "state.pt")
    average(ROOT, runs, [0.25, 0.5], [0.5, 0.0], tmp_path / "average")
    found = torch.load(tmp_path / "average" / "state.pt", weights_only=True)["model"]
    before, after = dict(model_of_repo(ROOT).named_parameters()), dict(model.named_parameters())
    for name in before:
        one, other = (0.25, 0.5) if "vision_tower" in name or "projector" in name else (0.5, 0.0)
        expected = (1 - one - other) * before[name] + (one + 2 * other) * after[name]
        assert torch.allclose(found[name], expected, atol=1e-5), name
    assert torch.equal(found["lm_head.weight"], found["model.language_model.embed_tokens.weight"])
    assert weights_of_state(tmp_path / "average")[0].keys() == weights_of_state(tmp_path / "run")[0].keys()
    with pytest.raises(FileExistsError):
        average(ROOT, runs[:1], [0.25], [0.5], tmp_path / "average")
    with pytest.raises(ValueError, match=r"--tower 1\.5: a share is between 0 and 1"):
        average(ROOT, runs[:1], [1.5], [0.5], tmp_path / "other")
    with pytest.raises(ValueError, match=r"--text 0\.5: one share for each of 2 runs"):
        average(ROOT, runs, [0.5, 0.5], [0.5], tmp_path / "other")
