"""Driver: an AWQ repo, unchanged, in transformers' stock classes with gptqmodel, on the CPU in bfloat16."""

import sys

import numpy as np
import torch
from decoding import decode
from jobs import Job, summary
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

model_path, job, result = sys.argv[1:]
job = Job.read(job)
sees = hasattr(AutoConfig.from_pretrained(model_path), "vision_config")
auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
model = auto.from_pretrained(model_path, dtype=torch.bfloat16, device_map="cpu", trust_remote_code=False)
kernels = {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}
logits = decode(model, job.prompts, job.continuations.shape[1], torch.from_numpy(job.continuations))
np.savez(result, kernels=sorted(kernels), **summary(logits.numpy(), job.continuations))
