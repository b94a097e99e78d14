"""Peers and ours side by side; RESULTS.md has the numbers and the commands.

bench_generate          prefill and decode on CPUs: ours, llama.cpp, stock transformers, gptqmodel
  engine_worker           one of these engines in its process
  comparison              the rows beside each other
  plot                    the same as a picture
bench_kernels           one int4 product, every published shape, CPUs
bench_gpu               products and whole models on a GPU
  tune_gpu                the fastest plan for each shape
bench_convert           conversion against reading
bench_app               the page against bare `generate`

random_repo             random models in the published shapes, in the forms that peers read
synthetic_checkpoint    the same as Kaggle ships them
shapes                  the published shapes
machine, memory         what the machine can do, and its memory
"""
