"""Driver: a Kaggle-layout checkpoint in DeepMind's own `gemma` package, JAX on the CPU, float32.

MODEL is a folder with the checkpoint and config.json, the same model's configuration in transformers' words. The result
also carries `logits` float32 [prompts, steps, rows of the embedding].
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gemma import gm
from gemma.gm.nn import _config, _modules, _transformer
from gemma.gm.utils import _attention_mask
from gemma.multimodal import vision, vision_utils
from jobs import Job, summary

SOFT = vision.TOKEN_PLACEHOLDER
KINDS = {
    "sliding_attention": _modules.AttentionType.LOCAL_SLIDING,
    "full_attention": _modules.AttentionType.GLOBAL,
}


def transformer_config(values: dict, rows: int) -> _config.TransformerConfig:
    """The configuration in DeepMind's words; `rows` are those of the embedding."""
    text = values.get("text_config", values)
    scale = _config.QueryPreAttentionNormalisation
    by_head = text["query_pre_attn_scalar"] == text["head_dim"]
    rope = text["rope_parameters"]
    return _config.TransformerConfig(
        num_embed=rows,
        embed_dim=text["hidden_size"],
        hidden_dim=text["intermediate_size"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        final_logit_softcap=None,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        transpose_gating_einsum=True,
        attention_types=[KINDS[kind] for kind in text["layer_types"]],
        query_pre_attn_norm=scale.BY_ONE_OVER_SQRT_HEAD_DIM
        if by_head
        else scale.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
        sliding_window_size=text["sliding_window"],
        local_base_frequency=rope["sliding_attention"]["rope_theta"],
        global_base_frequency=rope["full_attention"]["rope_theta"],
        global_scale_factor=rope["full_attention"].get("factor", 1.0),
        vision_encoder=vision_encoder(values) if "vision_config" in values else None,
    )


def vision_encoder(values: dict) -> vision.SigLiPFromPatches:
    siglip, soft = values["vision_config"], values["mm_tokens_per_image"]
    side, patch = siglip["image_size"], siglip["patch_size"]
    return vision.SigLiPFromPatches(
        siglip_encoder=vision_utils.ViTModel(
            patch_size=(patch, patch),
            width=siglip["hidden_size"],
            depth=siglip["num_hidden_layers"],
            mlp_dim=siglip["intermediate_size"],
            num_heads=siglip["num_attention_heads"],
        ),
        siglip_exit=vision.VisionExit(output_length=soft),
        num_mm_tokens_per_image_prepool=(side // patch) ** 2,
        num_mm_tokens_per_image=soft,
        image_height=side,
        image_width=side,
    )


class Gemma(gm.nn.Transformer):
    """DeepMind's Transformer on tokens that hold the soft tokens already: its own code for putting them in knows only
    the published vocabulary. Otherwise what its `__call__` does."""

    def logits(self, tokens: jax.Array, images: jax.Array | None) -> jax.Array:
        """tokens int32 [1, length], 0 is padding; images uint8 [1, pictures, side, side, 3] -> [1, length, rows]."""
        x = self.embedder.encode(tokens)
        soft = None
        if images is not None:
            soft = tokens == SOFT
            x = self._merge_mm_embeddings(tokens=tokens, embeddings=x, images=images)
        mask = _attention_mask.make_causal_bidirectional_attention_mask(tokens != 0, bidirectional_mask=soft)
        inputs = _transformer._Inputs(
            embeddings=x, positions=jnp.arange(tokens.shape[1])[None], attention_mask=mask, inputs_mask=tokens != 0
        )
        x, _ = self._apply_attention(inputs, cache=None)
        return self.embedder.decode(x)


def main() -> None:
    folder, job, result = sys.argv[1:]
    job = Job.read(job)
    prompts, continuations = job.prompts, job.continuations
    values = json.loads(Path(folder, "config.json").read_text())
    params = gm.ckpts.load_params(Path(folder, "checkpoint"))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    rows = params["embedder"]["input_embedding"].shape[0]
    model = Gemma(config=transformer_config(values, rows), dtype=jnp.float32)
    run = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, method=model.logits))

    steps = continuations.shape[1]
    length = max(len(prompt.ids) for prompt in prompts) + steps  # one shape for all: padding on the right is unseen
    logits = np.empty((*continuations.shape, rows), np.float32)
    for n, prompt in enumerate(prompts):
        tokens = np.zeros((1, length), np.int32)
        whole = np.concatenate([prompt.ids, continuations[n]])
        tokens[0, : len(whole)] = np.where(whole == job.soft_token, SOFT, whole)
        images = jnp.asarray(prompt.pictures)[None] if len(prompt.pictures) else None
        start = len(prompt.ids) - 1
        logits[n] = np.asarray(run(params, jnp.asarray(tokens), images))[0, start : start + steps]
    spoken = np.where(continuations == job.soft_token, 0, continuations)  # a soft token may have no logit
    np.savez(result, logits=logits, **summary(logits, spoken))


if __name__ == "__main__":
    main()
