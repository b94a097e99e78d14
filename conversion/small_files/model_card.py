"""README.md of a converted repo: front matter for the Hub, what the weights are, how to run them.

* `model_card`: of a repo in AWQ format.
* `export_card`: of what `--format` makes of it.
"""

from __future__ import annotations

import re

from transformers import Gemma3Config, Gemma3TextConfig

from conversion.facts import LeafFacts
from conversion.small_files.provenance import PROVENANCES

FRONT_MATTER = """\
---
license: gemma
library_name: transformers
pipeline_tag: {task}
extra_gated_heading: Access to Gemma on Hugging Face
extra_gated_prompt: >-
  These are Gemma weights. To fetch them from here, log in to Hugging Face, read Google's usage licence and agree to it
  with the button below. Requests are granted at once.
extra_gated_button_content: Acknowledge the licence
{base_model}{quantized_by}tags:
- gemma3
- int4
- awq
{qat}- custom_code
---
"""

BODY = """\
# {title}

{origin}

{precision}

`conversion.json` says what was converted with which options, how exact the scales are stored, and the SHA-256 of
every file.

## Use

```
pip install torch transformers safetensors accelerate pillow
```

{snippets}
`trust_remote_code=True` runs the Python files of this repo, which compute from the int4 weights on CPUs and GPUs.
Without it transformers takes its stock AWQ path, which asks for gptqmodel. float16 is refused: Gemma 3 overflows it.
`AutoModel` gives the same model without its output head.

{guide}
## The model

Gemma is a family of light open models from Google DeepMind, built from the research behind Gemini. {abilities} Its
context is {context} tokens, and it writes up to 8192. Training data (web pages, code, mathematics{pictures}; over 140
languages), evaluation, intended use, limitations and safety are described in the [Gemma 3 model card]({card}) and in
the [technical report](https://goo.gle/Gemma3Report).

Like every model of its kind it can state falsehoods with confidence, and it repeats biases of its training data:
check what it says before you rely on it.

## Terms

Gemma is provided under and subject to the [Gemma Terms of Use](https://ai.google.dev/gemma/terms); its [Prohibited
Use Policy](https://ai.google.dev/gemma/prohibited_use_policy) applies. See NOTICE. The Python files are under the
Apache License 2.0.

```
@article{{gemma_2025,
    title={{Gemma 3}},
    url={{https://goo.gle/Gemma3Report}},
    publisher={{Kaggle}},
    author={{Gemma Team}},
    year={{2025}}
}}
```
"""

INEXACT = """\
Codes and scales were read back from the grid, and each product of the two was compared with the source's float.
{inexact} of {groups} groups of 32 lie on no grid: they hold the nearest codes, off by at most {worst:.2g} of the
group's largest weight."""

PIPELINE_WITH_PICTURES = """\
```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="PATH_OR_REPO_ID", trust_remote_code=True)
messages = [
    {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
    {"role": "user", "content": [
        {"type": "image", "path": "candy.jpg"},
        {"type": "text", "text": "What animal is on the candy?"},
    ]},
]
print(pipe(text=messages, max_new_tokens=200)[0]["generated_text"][-1]["content"])
```

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("PATH_OR_REPO_ID", trust_remote_code=True, device_map="auto")
processor = AutoProcessor.from_pretrained("PATH_OR_REPO_ID")
messages = [{"role": "user", "content": [
    {"type": "image", "path": "bee.jpg"},
    {"type": "text", "text": "Describe this image in detail."},
]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, dtype=model.dtype)
output = model.generate(**inputs, max_new_tokens=100, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

"""

CHAT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPO_ID", trust_remote_code=True, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO_ID")
messages = [{"role": "user", "content": "Why is the sky blue?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

"""

COMPLETION = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPO_ID", trust_remote_code=True, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO_ID")
inputs = tokenizer("The sky is blue because", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

"""


EXPORT_BODY = """\
# {title}, {kind}

{title}, moved from a repo in AWQ format into the {kind} format. Every int4 code is the same
one: all were read back and compared. `conversion.json` has the SHA-256 of every file.

```
{command}
```
"""

EXPORT_TERMS = """
The weights come from {source}.
Gemma is provided under and subject to the [Gemma Terms of Use](https://ai.google.dev/gemma/terms); its [Prohibited
Use Policy](https://ai.google.dev/gemma/prohibited_use_policy) applies. See NOTICE.
"""

COMMANDS = {
    "compressed-tensors": "vllm serve PATH_OR_REPO_ID --dtype bfloat16",
    "mlx": "mlx_vlm.generate --model PATH_OR_REPO_ID --image PICTURE --prompt ...  # text only: mlx_lm.generate",
    "gguf": "llama-server -m model-Q4_0.gguf  # with --mmproj mmproj-F16.gguf if that file is here",
}


def precision(facts: list[LeafFacts], kind: str) -> str:
    """What the conversion may say about its exactness, after what it saw.

    Args:
        facts: of every part.
        kind: of the source.
    """
    leaves = [leaf for leaf in facts if leaf.inexact]
    if not leaves:
        return PROVENANCES[kind].exact + _rounding(facts)
    groups = sum(leaf.groups for leaf in facts)
    inexact, worst = sum(leaf.inexact for leaf in leaves), max(leaf.worst for leaf in leaves)
    return INEXACT.format(inexact=inexact, groups=groups, worst=worst)


def _rounding(facts: list[LeafFacts]) -> str:
    """What became of the tensors that are no codes, where that was counted."""
    counted = [leaf for leaf in facts if leaf.rounded]
    if not counted:
        return ""
    embedding = next((leaf for leaf in counted if leaf.is_embedding), None)
    values = sum(leaf.rounded for leaf in counted)
    most = f", {embedding.rounded} of them in the embedding, which is not on a grid there" if embedding else ""
    return f" Of the other tensors {values} values were rounded to the dtype of this repo{most}."


def model_card(
    config: Gemma3Config | Gemma3TextConfig,
    size: str | None,
    variant: str,
    precision: str,
    kind: str,
    source: str | None,
    guide: str,
) -> str:
    """The card of a converted repo.

    Args:
        config: multimodal or text-only.
        size: `270M` ... `27B`, None if the configuration is not one of Google's Flax checkpoints.
        variant: `it` (chat) or `pt` (completion).
        precision: what `precision` says.
        kind: of the source.
        source: the repo of the Hub that the source is, or what it names as its base model; None if there is none.
        guide: what `guide.guide` says.
    """
    provenance = PROVENANCES[kind]
    multimodal = isinstance(config, Gemma3Config)
    google = f"google/gemma-3-{size.lower()}-{variant}" if size else None
    base = google or source
    tuning = "instruction-tuned" if variant == "it" else "pre-trained"
    if variant == "it":
        snippets = PIPELINE_WITH_PICTURES if multimodal else CHAT
    else:
        snippets = COMPLETION
    return FRONT_MATTER.format(
        task="image-text-to-text" if multimodal else "text-generation",
        base_model=f"base_model: {base}\nbase_model_relation: quantized\n" if base else "",
        quantized_by="quantized_by: google\n" if google else "",
        qat="- qat\n" if google or "qat" in str(source).lower() else "",
    ) + BODY.format(
        title=", ".join([f"Gemma 3 {size}" if size else "Gemma 3", tuning, provenance.label]),
        origin=provenance.origin + (f" Base model: {_link(source)}." if source and not google else ""),
        precision=precision,
        snippets=snippets,
        guide=guide,
        abilities="It reads text and pictures and writes text." if multimodal else "It reads and writes text.",
        context=f"{config.get_text_config().max_position_embeddings // 1024}K",
        pictures=", pictures" if multimodal else "",
        card=f"https://huggingface.co/{google}" if google else "https://ai.google.dev/gemma/docs/core/model_card_3",
    )


def _link(repo: str) -> str:
    return f"[{repo}](https://huggingface.co/{repo})"


def export_card(card: str, kind: str, gemma: bool, source: str = "flax") -> str:
    """The card of a repo in another format than AWQ.

    Args:
        card: the AWQ repo's card, empty if it has none; its front matter and its title are taken over.
        kind: `compressed-tensors`, `gguf` or `mlx`.
        gemma: whether these are Google's weights.
        source: the kind of source that the AWQ repo was made from.
    """
    front = re.match(r"---\n.*?\n---\n", card, re.DOTALL)
    head = front[0].replace("- awq\n", f"- {kind}\n") if front else ""
    head = re.sub(r" *- custom_code\n", "", head)
    if kind in ("gguf", "mlx"):
        head = head.replace("library_name: transformers\n", f"library_name: {kind}\n")
    title = re.search(r"^# (.+)$", card, re.MULTILINE)
    body = EXPORT_BODY.format(title=title[1] if title else "Gemma 3, INT4", kind=kind, command=COMMANDS[kind])
    provenance = PROVENANCES[source]
    return head + body + (EXPORT_TERMS.format(source=provenance.place or provenance.notice) if gemma else "")
