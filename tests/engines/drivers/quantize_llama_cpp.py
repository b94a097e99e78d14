"""Driver: llama.cpp's own quantization, through llama-cpp-python.

    python quantize_llama_cpp.py SOURCE TARGET EMBEDDING

SOURCE becomes TARGET, every matrix in Q4_0 and the embedding in a type of its own, such as Q6_K.
"""

import ctypes
import sys

import llama_cpp


def main() -> None:
    source, target, embedding = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.token_embedding_type = getattr(llama_cpp, f"GGML_TYPE_{embedding}")
    parameters.pure = parameters.allow_requantize = True
    if code := llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
        sys.exit(f"llama_model_quantize: {code}")


if __name__ == "__main__":
    main()
