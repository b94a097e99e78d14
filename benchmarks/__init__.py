"""Peers and ours side by side; RESULTS.md has the numbers and the commands.

bench_generate          prefill and decode on CPUs: ours, llama.cpp, stock transformers, gptqmodel
  engine_worker           one of these engines in its process
  comparison              the rows beside each other
  plot                    the same as a picture
bench_prompt            one long prompt, with pictures: time, memory, the vision tower's rate
bench_attention         attention alone, on CPUs
bench_training          LoRA: ours, bitsandbytes, bfloat16
bench_kernels           one int4 product, every published shape, CPUs; cpu_products, its work
bench_gpu               products and whole models on a GPU; gpu/, its parts
  tune_gpu                the fastest plan for each shape
  report                  a table and JSON lines
bench_convert           conversion against reading
bench_app               the page against bare `generate`
bench_requests          hostile requests to the chat's server
bench_chats             chats of many turns: with and without memory, and llama.cpp's server
  check_memory            random chats with memory held against the model without
  soak_memory             what the memory takes over many questions

random_repo             random models in the published shapes, in the forms that peers read
synthetic_checkpoint    the same as Kaggle ships them; synthetic_leaves, its work
synthetic_gguf          the same as Google's QAT Q4_0 GGUF files; synthetic_blocks, its work
shapes, choices         the published shapes; what options can name
machine, memory         what the machine can do, and its memory
"""

import sys
import types
from pathlib import Path

# The modeling files import each other relatively; transformers makes them a package when it loads a repo, as here.
package = types.ModuleType("gemma3_int4")
package.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules.setdefault("gemma3_int4", package)
