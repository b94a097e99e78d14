"""Driver: an AWQ or compressed-tensors repo in vLLM on the CPU, bfloat16, cut over a number of processes."""

import os
import sys

# Before vLLM is imported: no process but those asked for, threads where the system puts them, cache memory in GiB.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_CPU_KVCACHE_SPACE="1")
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
# On CPUs with AMX its int4 kernel would quantize activations to int8 otherwise.
os.environ["VLLM_CPU_INT4_W4A8"] = "0"

import numpy as np
from jobs import Job, Prompt
from PIL import Image
from vllm import LLM, SamplingParams


def request(prompt: Prompt, *tokens: int) -> dict:
    """The prompt and tokens after it; vLLM itself puts the soft tokens in."""
    ask = {"prompt_token_ids": [*prompt.compact.tolist(), *tokens]}
    if len(prompt.pictures):
        ask["multi_modal_data"] = {"image": [Image.fromarray(picture) for picture in prompt.pictures]}
    return ask


def main() -> None:
    model_path, job, result, processes = sys.argv[1:]
    job = Job.read(job)
    prompts, continuations = job.prompts, job.continuations
    steps = continuations.shape[1]
    most = max(len(prompt.pictures) for prompt in prompts)
    options = {"limit_mm_per_prompt": {"image": most}} if most else {}
    options |= {"max_model_len": 512, "max_num_seqs": 20, "enforce_eager": True}
    model = LLM(model_path, dtype="bfloat16", tensor_parallel_size=int(processes), **options)

    # Free decoding; where a prompt leaves its continuation, it starts again after the continuation's token.
    tokens = np.full_like(continuations, -1)
    todo = {n: 0 for n in range(len(prompts))}  # prompt -> first step not yet decoded
    while todo:
        asks = [request(prompts[n], *continuations[n, :start].tolist()) for n, start in todo.items()]
        options = [SamplingParams(temperature=0, max_tokens=steps - start, ignore_eos=True) for start in todo.values()]
        for (n, start), answer in zip(list(todo.items()), model.generate(asks, options), strict=True):
            chosen = np.array(answer.outputs[0].token_ids)
            wrong = np.flatnonzero(chosen != continuations[n, start:])
            end = start + int(wrong[0]) + 1 if len(wrong) else steps
            tokens[n, start:end] = chosen[: end - start]
            todo[n] = end
            if end == steps:
                del todo[n]

    whole = [request(prompt, *row.tolist()) for prompt, row in zip(prompts, continuations, strict=True)]
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    logprobs = np.zeros(continuations.shape, np.float32)
    for n, answer in enumerate(model.generate(whole, scoring)):
        expected = [*prompts[n].ids.tolist(), *continuations[n].tolist()]
        if answer.prompt_token_ids != expected:
            sys.exit(f"prompt {n}: vLLM expands it to {answer.prompt_token_ids}, transformers to {expected}")
        for step, choices in enumerate(answer.prompt_logprobs[-steps:]):
            logprobs[n, step] = choices[int(continuations[n, step])].logprob
    np.savez(result, tokens=tokens, logprobs=logprobs)


if __name__ == "__main__":
    main()
