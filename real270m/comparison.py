"""The real Gemma 3 270M, snapped to the int4 grid, converted, and beside the same weights in stock transformers."""

import pydoc_data.topics
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

import convert_flax
from conversion.quality import perplexity
from conversion.sizes import SIZES, published_config
from demo.flax_export import export_flax
from real270m.fetch import CACHE, gguf_path
from real270m.tokenizer_model import tokenizer_model_path

FOLDER = CACHE / "real270m"
CHECKPOINT = FOLDER / "gemma-3-flax-gemma3-270m-pt-int4"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "The three primary colours are",
    "Water boils at",
    "In 1969, Neil Armstrong",
    "The largest planet in our solar system is",
    "def fibonacci(n):\n",
    "A recipe for pancakes: take two eggs,",
    "The opposite of hot is",
    "Shakespeare wrote",
    "Photosynthesis is the process by which",
    "The quick brown fox",
    "My favourite season is autumn because",
    "To install Python on Linux,",
    "The French word for dog is",
    "The Second World War ended in",
    "E = mc^2 means that",
    "Dear Sir or Madam,\n",
    "The Great Wall of China was built",
    "A triangle has",
]
PERPLEXITY_TOKENS, WINDOW = 4096, 512


def snapped_model() -> Gemma3ForCausalLM:
    """Stock transformers in float32, every matrix and the embedding on the int4 grid: code * (absmax / 7)."""
    file = gguf_path()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                groups = parameter.view(-1, 32)
                scales = groups.abs().amax(dim=1, keepdim=True) / 7
                codes = (groups / torch.where(scales == 0, 1, scales)).round().clamp(-7, 7)
                parameter.copy_((codes * scales).view_as(parameter))
    return model.eval()


def kaggle_checkpoint(model: Gemma3ForCausalLM) -> Path:
    """The model as Kaggle ships one: an Orbax folder beside tokenizer.model."""
    if not (CHECKPOINT / "tokenizer.model").exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        CHECKPOINT.mkdir(parents=True)
        config = published_config(next(size for size in SIZES if size.name.lower() == "270m"), "pt")
        export_flax(model.state_dict(), config, CHECKPOINT / "checkpoint", embedding_rows=config.vocab_size)
        shutil.copy(tokenizer_model_path(), CHECKPOINT / "tokenizer.model")
    return CHECKPOINT


def converted(scale_dtype: str, *options: str) -> Path:
    output = FOLDER / scale_dtype
    shutil.rmtree(output, ignore_errors=True)
    arguments = ["--checkpoint", str(CHECKPOINT), "--output", str(output), "--variant", "pt", "--scale-dtype"]
    if code := convert_flax.main([*arguments, scale_dtype, *options]):
        sys.exit(code)
    return output


@torch.inference_mode()
def greedy(model, tokenizer) -> torch.Tensor:
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    out = model.generate(**batch, max_new_tokens=32, min_new_tokens=32, do_sample=False, top_k=None, top_p=None)
    return out[:, batch["input_ids"].shape[1] :]


@torch.inference_mode()
def compare() -> bool:
    """Converts the checkpoint, prints logits, continuations and perplexity; returns whether ours equal stock's."""
    stock = snapped_model()
    kaggle_checkpoint(stock)
    exact = converted("float32", "--dtype", "float32")
    tokenizer = AutoTokenizer.from_pretrained(exact)
    ours = AutoModelForCausalLM.from_pretrained(exact, trust_remote_code=True)
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0, :PERPLEXITY_TOKENS]

    print(f"\nfloat32, backend {ours.int4_backend}: three continuations")
    expected, found = greedy(stock, tokenizer), greedy(ours, tokenizer)
    for prompt, answer in list(zip(PROMPTS, found, strict=True))[:3]:
        print(f"  {prompt!r} -> {tokenizer.decode(answer)!r}")
    same = (expected == found).all(dim=1)
    ids = torch.cat([torch.tensor([2]), tokens[:511]]).unsqueeze(0)
    difference = (ours(ids).logits - stock(ids).logits).abs().max().item()
    print(
        f"logits: largest difference from the dequantized weights in stock transformers {difference:.1e} (512 tokens)"
    )
    print(f"greedy: {int(same.sum())} of {len(PROMPTS)} prompts with the same 32 tokens")
    print(f"perplexity on {PERPLEXITY_TOKENS} tokens of Python's documentation, in windows of {WINDOW}:")
    print(f"  {'stock transformers, float32, dequantized':46}{perplexity(stock, tokens, WINDOW, WINDOW):10.4f}")
    del stock
    print(f"  {'ours, float32, float32 scales':46}{perplexity(ours, tokens, WINDOW, WINDOW):10.4f}")
    del ours
    for scale_dtype in ("float16", "bfloat16"):
        repo = converted(scale_dtype)
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, dtype=dtype)
            row = f"ours, {str(dtype).removeprefix('torch.')}, {scale_dtype} scales, {model.int4_backend}"
            print(f"  {row:46}{perplexity(model, tokens, WINDOW, WINDOW):10.4f}", flush=True)
    good = bool(same.all()) and difference < 1e-3
    print("real 270M: all equal" if good else "real 270M: NOT equal")
    return good
