"""Driver: GGUF files in llama.cpp, through llama-cpp-python.

MODEL is a folder with model-*.gguf and maybe mmproj-*.gguf. The result also carries `loss`, the mean negative
log-likelihood of the job's windows, each token after the first given those before it.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
from jobs import Job, Prompt, log_softmax, summary

THREADS = 2
CONTEXT = 1024


def load(file: Path) -> llama_cpp.Llama:
    """The model, without weights repacked for AMX: llama.cpp 0.3.36 dies of SIGSEGV there on some machines."""
    default = llama_cpp.llama_cpp.llama_model_default_params

    def parameters():
        values = default()
        values.use_extra_bufts = False
        return values

    llama_cpp.llama_cpp.llama_model_default_params = parameters
    return llama_cpp.Llama(str(file), n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=THREADS, logits_all=True, verbose=False)


class Eyes:
    """The mmproj file, and pictures through it."""

    def __init__(self, file: Path, model: llama_cpp.Llama):
        options = mtmd.mtmd_context_params_default()
        options.use_gpu, options.warmup, options.n_threads = False, False, THREADS
        self.context = mtmd.mtmd_init_from_file(str(file).encode(), model.model, options)
        self.model = model

    def see(self, picture: np.ndarray, soft_tokens: int) -> None:
        """Evaluates the soft tokens of a picture [side, side, 3]; what is around them is text, and up to the caller."""
        data = np.ascontiguousarray(picture)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(data.shape[1], data.shape[0], pointer)
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text()
        text.text, text.text_len, text.add_special, text.parse_special = marker, len(marker), False, True
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if code := mtmd.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1):
            sys.exit(f"mtmd_tokenize: {code}")
        for n in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, n)
            if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if mtmd.mtmd_input_chunk_get_n_tokens(chunk) != soft_tokens:
                sys.exit(f"llama.cpp makes another number of soft tokens than {soft_tokens}")
            end = llama_cpp.llama_pos(0)
            start = self.model.n_tokens
            arguments = (chunk, start, 0, CONTEXT, False, ctypes.byref(end))
            if code := mtmd.mtmd_helper_eval_chunk_single(self.context, self.model._ctx.ctx, *arguments):
                sys.exit(f"mtmd_helper_eval_chunk_single: {code}")
            self.model.n_tokens = end.value
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)


def read(model: llama_cpp.Llama, eyes: Eyes | None, prompt: Prompt, soft: int) -> None:
    """Evaluates a prompt, text and pictures by turns; `soft` is the id of a soft token."""
    model.reset()
    edges = np.flatnonzero(np.diff(prompt.ids == soft)) + 1
    pictures = iter(prompt.pictures)
    for part in np.split(prompt.ids, edges):
        if part[0] == soft:
            eyes.see(next(pictures), len(part))
        else:
            model.eval(part.tolist())


def main() -> None:
    folder, job, result = sys.argv[1:]
    job = Job.read(job)
    (file,) = Path(folder).glob("model-*.gguf")
    model = load(file)
    projectors = list(Path(folder).glob("mmproj-*.gguf"))
    eyes = Eyes(projectors[0], model) if projectors else None

    logits = np.empty((*job.continuations.shape, model.n_vocab()), np.float32)
    for n, prompt in enumerate(job.prompts):
        read(model, eyes, prompt, job.soft_token)
        for step, token in enumerate(job.continuations[n].tolist()):
            logits[n, step] = model.scores[model.n_tokens - 1]
            model.eval([token])

    losses = []
    for window in job.windows.tolist():
        model.reset()
        model.eval(window)
        predicted = log_softmax(np.array(model.scores[: len(window) - 1]))
        losses.append(-predicted[np.arange(len(window) - 1), window[1:]])
    loss = np.mean(losses) if losses else np.nan
    np.savez(result, loss=loss, **summary(logits, job.continuations))


if __name__ == "__main__":
    main()
