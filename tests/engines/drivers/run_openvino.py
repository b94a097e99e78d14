"""Driver: the GGUF file in OpenVINO's runtime, text alone, through its GGUF frontend (a preview; not in its list).

MODEL is a folder with model-*.gguf. OpenVINO's default settings, or "exact" at the end: float32 and no activation in
int8. The frontend's graph has its cache as inputs and outputs; here a prompt and its continuation go through at once,
so each cache is what this pass writes into it.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import openvino as ov
from jobs import Job, summary
from openvino import opset13
from openvino.frontend import FrontEndManager

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def graph(file: Path) -> ov.Model:
    """Of the file: tokens, positions and masks to logits, without a cache."""
    frontend = FrontEndManager().load_by_framework("gguf")
    model = frontend.convert(frontend.load(str(file)))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScatterUpdate":
            continue
        cache, _, written, _ = node.input_values()
        _, _, *sizes = [size.get_length() if size.is_static else -1 for size in cache.get_partial_shape()]
        written = opset13.reshape(written, np.array([1, -1, *sizes]), False)
        for reader in node.output(0).get_target_inputs():
            if reader.get_node().get_type_name() != "Result":
                reader.replace_source_output(written.output(0))
    for result in model.get_results():
        if result.get_friendly_name().startswith("cache_"):
            model.remove_result(result)
    for parameter in model.get_parameters():
        if parameter.get_friendly_name().startswith(("cache_", "inp_kv_idx")):
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def inputs(ids: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """For tokens [n] after nothing; `window` is what sliding layers see."""
    places = np.arange(len(ids), dtype=np.int32)
    back = places[:, None] - places
    masks = {"self_kq_mask": back >= 0, "self_kq_mask_swa": (back >= 0) & (back < window)}
    return {
        "inp_tokens": ids.astype(np.int32)[None, None, None],
        "inp_pos": places[None, None, None],
        "inp_out_ids": places[None, None, None],
        "token_len_per_seq": np.array([len(ids)], np.int64),
        **{name: np.where(mask, 0, -np.inf).astype(np.float32)[None, None] for name, mask in masks.items()},
    }


def main() -> None:
    folder, job, result, *exact = sys.argv[1:]
    job = Job.read(job)
    (file,) = Path(folder).glob("model-*.gguf")
    window = int(gguf.GGUFReader(file).fields["gemma3.attention.sliding_window"].contents())
    model = ov.Core().compile_model(graph(file), "CPU", EXACT if exact else {})
    known = {port.any_name for port in model.inputs}

    rows = []
    for prompt, continuation in zip(job.prompts, job.continuations, strict=True):
        fed = inputs(np.concatenate([prompt.ids, continuation[:-1]]), window)
        logits = model({name: values for name, values in fed.items() if name in known})[0]
        rows.append(logits[0, 0, len(prompt.ids) - 1 :].astype(np.float32))
    np.savez(result, **summary(np.stack(rows), job.continuations))


if __name__ == "__main__":
    main()
