"""The model, and how it is trained to be int4.

* `build_config()`: the sizes of the shipped Gemma 3.
* `fake_quantize()`: a matrix to the int4 grid, straight-through.
* `quantized_weights()`: all parameters as the finished model will have them, in the compute dtype.
* `tower_loss()`, `answer_loss()`: the losses of the two stages of training.
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from .targets import NONE, PATCHES, SLOTS, UNKNOWN
from .tokenizer import IMAGE_SIZE, IMAGE_TOKENS, PADDED_VOCAB, TEXT_VOCAB

GROUP = 32
NONE_WEIGHT = 0.25  # of a patch that shows nothing, beside one that shows something
SLOT_SHARE = 0.5  # weight of the loss of each kind of slots beside that of the words
WHOLE_SHARE = 0.3  # weight of what the tower tells by itself while the whole model learns


def build_config() -> Gemma3Config:
    """Returns the configuration: six text layers (five sliding, one global) and a SigLIP tower of six."""
    config = Gemma3Config(
        text_config={
            "vocab_size": PADDED_VOCAB,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 512,
            "max_position_embeddings": 8192,
        },
        vision_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "vision_use_head": False,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=6,
        eoi_token_index=7,
        image_token_index=TEXT_VOCAB,
        eos_token_id=[1, 5],
        bos_token_id=2,
        pad_token_id=0,
    )
    config.text_config.bos_token_id, config.text_config.eos_token_id, config.text_config.pad_token_id = 2, 1, 0
    return config


def is_quantized(name: str) -> bool:
    """Says whether a parameter of the transformers model is one of the int4 matrices."""
    return "language_model" in name and (name.endswith("_proj.weight") or name.endswith("embed_tokens.weight"))


def build_model() -> Gemma3ForConditionalGeneration:
    """Returns the model with fresh weights, float32; the padded rows of the embedding are zero."""
    model = Gemma3ForConditionalGeneration(build_config())
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[TEXT_VOCAB:] = 0
    return model


def int4_grid(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a matrix to the grid: codes in -7..7 and one scale per 32 inputs, exact in bfloat16.

    Args:
        weight: float32 [out, in].

    Returns:
        codes float32 [out, in/32, 32] (whole numbers) and scales float32 [out, in/32, 1]; a group of zeros has scale 1.
    """
    groups = weight.unflatten(-1, (-1, GROUP))
    scales = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (groups / scales).round().clamp(-7, 7), scales


def fake_quantize(weight: torch.Tensor) -> torch.Tensor:
    """Returns the matrix on the int4 grid; gradients pass straight through."""
    codes, scales = int4_grid(weight)
    return weight + ((codes * scales).flatten(-2) - weight).detach()


def quantized_weights(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Returns every parameter as the finished model has it: int4 matrices on their grid, all rounded to `dtype`.

    The zero rows that pad the embedding stay zero, also under training.
    """
    weights, alike = {}, {}
    for name, parameter in model.named_parameters():
        weights[name] = parameter
        if is_quantized(name):
            alike.setdefault(parameter.shape, []).append(name)
    for names in alike.values():  # all of one shape at once: a GPU takes as long for one as for many
        stack = fake_quantize(torch.stack([weights[name] for name in names]))
        weights |= dict(zip(names, stack, strict=True))
    for name, weight in weights.items():
        if name.endswith("embed_tokens.weight"):
            weight = F.pad(weight[:TEXT_VOCAB], (0, 0, 0, PADDED_VOCAB - TEXT_VOCAB))
        weights[name] = weight.to(dtype)
    return weights


class PatchHead(torch.nn.Module):
    """Tells from soft tokens what is in the four patches of each; thrown away after training."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.tell = torch.nn.ModuleDict({name: torch.nn.Linear(width, 4 * c) for name, c in PATCHES.items()})

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Takes [N, 16, width]; returns logits [N, 64, classes] by name."""
        tokens = self.norm(tokens)
        return {name: tell(tokens).unflatten(2, (4, PATCHES[name])).flatten(1, 2) for name, tell in self.tell.items()}


class TowerHead(torch.nn.Module):
    """Tells from the tower's features what the answers will say and what is where; thrown away after training.

    `inner` tells the same from what the text model has made of the soft tokens halfway through its layers.
    """

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.words = torch.nn.Linear(width, TEXT_VOCAB)
        self.slots = torch.nn.ModuleDict({name: torch.nn.Linear(width, n * c) for name, (n, c) in SLOTS.items()})
        self.patches, self.inner = PatchHead(width), PatchHead(text_width)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Takes [N, 64, width] of an 8x8 grid of patches.

        Returns:
            Logits of words [N, TEXT_VOCAB]; by name, of slots [N, n, classes] and of patches [N, 64, classes], these
            from the features as they are pooled into soft tokens.
        """
        mean = self.norm(features.mean(1))
        side = int(features.shape[1] ** 0.5)
        pooled = features.unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten(1, 2)  # [N, 16, width]
        slots = {name: slot(mean).unflatten(1, SLOTS[name]) for name, slot in self.slots.items()}
        return self.words(mean), slots, self.patches(pooled)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """What the image processor makes of pictures of the model's size: uint8 [N, 3, 64, 64] -> float32 in -1..1."""
    return pixels.float() / 127.5 - 1


def tower_loss(
    model: Gemma3ForConditionalGeneration,
    head: TowerHead,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Cross-entropy of the guessed words of the answers, of slots and of patches: only the tower learns."""
    tower = model.model.vision_tower
    weights = {name: parameter.to(dtype) for name, parameter in tower.named_parameters()}
    features = functional_call(tower, weights, (normalized(batch["pixels"]).to(dtype),)).last_hidden_state
    return _missed(head, features, batch)


def _missed(head: TowerHead, features: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    words, slots, patches = head(features.float())
    loss = -(batch["words"] * words.log_softmax(-1)).sum(-1).mean()
    for name, logits in slots.items():
        target = batch[name].flatten()
        wrong = F.cross_entropy(logits.flatten(0, 1), target, ignore_index=UNKNOWN, reduction="sum")
        loss = loss + SLOT_SHARE * wrong / (target >= 0).sum().clamp(min=1)
    return loss + _misplaced(patches, batch)


def _misplaced(patches: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = torch.zeros((), device=batch["words"].device)
    for name, logits in patches.items():
        target = batch[name].flatten()
        wrong = F.cross_entropy(logits.flatten(0, 1), target, ignore_index=UNKNOWN, reduction="none")
        weight = torch.where(target == NONE[name], NONE_WEIGHT, 1.0) * (target >= 0)
        loss = loss + (wrong * weight).sum() / weight.sum().clamp(min=1)
    return loss


class _Training(torch.nn.Module):
    """The forward pass over a batch of `data.Batches`.

    Returns the tower's features, the hidden states of the soft tokens halfway through the text model, [N, 16, D], and
    the answer tokens' logits.
    """

    def __init__(self, model: Gemma3ForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inner = self.model.model
        pixels = normalized(batch["pixels"]).to(inner.language_model.embed_tokens.weight.dtype)
        features = inner.vision_tower(pixels).last_hidden_state
        soft = inner.multi_modal_projector(features)  # [N, 16, D]
        soft = F.pad(soft.flatten(0, 1), (0, 0, 1, 0))  # row 0 stands for "text"
        picture, segment = batch["picture"], batch["segment"]
        text = inner.language_model.embed_tokens(batch["ids"] * (picture == 0))
        hidden = torch.where((picture > 0)[..., None], F.embedding(picture, soft), text)

        step = torch.arange(picture.shape[1], device=picture.device)
        same = (segment[:, :, None] == segment[:, None, :]) | (batch["parent"][:, :, None] == segment[:, None, :])
        # image tokens see their whole image
        number = torch.where(picture > 0, segment * picture.numel() + (picture - 1) // IMAGE_TOKENS, -1 - step)
        seen = (same & (step[:, None] >= step)) | (number[:, :, None] == number[:, None, :])
        mask = torch.where(seen, 0.0, -1e9).to(hidden.dtype)[:, None]
        out = inner.language_model(
            inputs_embeds=hidden,
            position_ids=batch["position"],
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            use_cache=False,
            output_hidden_states=True,
        )
        halfway = out.hidden_states[len(out.hidden_states) // 2].flatten(0, 1)
        inside = halfway[batch["home"]].unflatten(0, (-1, IMAGE_TOKENS))
        answers = out.last_hidden_state.flatten(0, 1)[batch["where"]]
        return features, inside, F.linear(answers, inner.language_model.embed_tokens.weight)


def answer_loss(
    model: Gemma3ForConditionalGeneration,
    head: TowerHead,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens under the int4 weights, and a share of what tower and soft tokens miss.

    One mask serves sliding and global layers: a training row is shorter than the window.
    """
    weights = {f"model.{name}": weight for name, weight in quantized_weights(model, dtype).items()}
    features, inside, logits = functional_call(_Training(model), weights, (batch,), tie_weights=True)
    answers = F.cross_entropy(logits.float(), batch["target"], ignore_index=-100)
    return answers + WHOLE_SHARE * (_missed(head, features, batch) + _misplaced(head.inner(inside.float()), batch))
