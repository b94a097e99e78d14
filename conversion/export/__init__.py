"""A converted repo in AWQ format -> the same codes in another engine's format, proven by reading them back.

export.py            the flow, the same for every format
read_back.py         the proof
hub_exporter.py      a Hugging Face repo in one of `HUB_FORMATS`
gguf_exporter.py     GGUF files for llama.cpp, of these parts:
gguf_language.py     the language model: tensors, metadata
gguf_vision.py       the vision tower: tensors, metadata
gguf_vocabulary.py   the tokenizer in llama.cpp's words
gguf_file.py         how such a file is written
"""
