"""From the trained model to this repository's own files, by the way every checkpoint takes.

    python -m demo.convert                     repeats the conversion of the shipped checkpoint and compares every byte
    python -m demo.convert --state FOLDER      ships the model of a training folder: writes the files into --output

Either way: int4 weights as float32 -> a Kaggle-layout Orbax checkpoint (`demo.flax_export`) -> `convert_flax.py`. The
shipped files need no other source than themselves: codes times scales give the trained float32 values back exactly.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

import convert_flax
from conversion.codes import dequantize
from conversion.repos.awq_repo import AwqRepo

from .flax_export import export_flax
from .model import build_model, is_quantized, quantized_weights
from .tokenizer import ROOT, write_processor_files

SHARD_SIZE = "8MB"  # at least two shards, each small enough for plain git
SHIPPED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "int4_embedding.safetensors",
)


def weights_of_state(folder: Path) -> tuple[dict[str, torch.Tensor], Gemma3Config]:
    """Returns the weights of a training folder as the finished model has them, float32, and the configuration.

    Int4 matrices are codes times bfloat16 scales, all else is rounded to bfloat16, as training saw them.
    """
    model = build_model()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    exact = quantized_weights(model, torch.float32)
    rounded = quantized_weights(model, torch.bfloat16)
    return {name: (exact[name] if is_quantized(name) else rounded[name].float()) for name in exact}, model.config


def weights_of_repo(folder: Path) -> tuple[dict[str, np.ndarray], Gemma3Config]:
    """Returns the float32 weights that a converted repository stands for, and its configuration."""
    repo = AwqRepo(folder)
    weights = {f"{name}.weight": dequantize(*repo.linear(name)) for name in repo.linears}
    weights |= {name: repo.read(name).astype(np.float32) for name in repo.plain}
    rows = repo.text_config.vocab_size
    blocks = [dequantize(codes, scales) for codes, scales in repo.embedding_blocks(rows)]
    weights[f"{repo.embedding}.weight"] = np.concatenate(blocks)
    values = {k: v for k, v in repo.config.to_dict().items() if k not in ("quantization_config", "auto_map")}
    return weights, Gemma3Config(**values)


def model_of_repo(folder: Path) -> Gemma3ForConditionalGeneration:
    """Returns the float32 model, of transformers' own classes, that a converted repository stands for.

    Raises:
        ValueError: the repository holds other tensors than the demo's model.
    """
    renamed = {
        re.sub(
            r"^(language_model)\.model|^(vision_tower)\.vision_model|^(multi_modal_projector)", r"model.\1\2\3", name
        ): (torch.from_numpy(weight))
        for name, weight in weights_of_repo(folder)[0].items()
    }
    model = build_model()
    if odd := renamed.keys() ^ dict(model.named_parameters()).keys():
        raise ValueError(f"{folder}: tensors that are missing or have no place: {', '.join(sorted(odd))}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(renamed[name])
    return model


def convert(weights: dict, config: Gemma3Config, files: Path, output: Path) -> None:
    """Exports weights as a Kaggle-layout checkpoint and converts that.

    Args:
        weights: state dict, float32.
        config: the model's configuration.
        files: folder with tokenizer and processor files.
        output: folder to create.

    Raises:
        SystemExit: `convert_flax.py` refused; its message has been printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, settings = Path(scratch, "checkpoint"), Path(scratch, "config.json")
        export_flax(weights, config, checkpoint)
        settings.write_text(json.dumps(config.to_dict()))
        status = convert_flax.main(
            ["--checkpoint", str(checkpoint), "--config", str(settings), "--tokenizer", str(files)]
            + ["--output", str(output), "--dtype", "bfloat16", "--shard-size", SHARD_SIZE]
        )
    if status:
        sys.exit(status)


def shipped_files(folder: Path) -> list[Path]:
    """Returns the checkpoint's files in a converted repository: shards, index, configuration, tokenizer."""
    return sorted(folder.glob("model-*.safetensors")) + [folder / name for name in SHIPPED if (folder / name).exists()]


def differences(one: Path, other: Path) -> list[str]:
    """Returns the names of the checkpoint's files that are not the same bytes in both folders."""

    def digests(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped_files(folder)}

    left, right = digests(one), digests(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def repeat(folder: Path = ROOT) -> list[str]:
    """Converts a shipped checkpoint anew; returns the names of the files that came out otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        convert(*weights_of_repo(folder), folder, Path(scratch, "repo"))
        return differences(folder, Path(scratch, "repo"))


def ship(state: Path, output: Path) -> None:
    """Converts the model of a training folder and copies the checkpoint's files, log and loss curve to `output`."""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "files")
        write_processor_files(AutoTokenizer.from_pretrained(state / "tokenizer"), files)
        convert(*weights_of_state(state), files, Path(scratch, "repo"))
        for old in shipped_files(output):
            old.unlink()
        output.mkdir(parents=True, exist_ok=True)
        for path in shipped_files(Path(scratch, "repo")):
            shutil.copyfile(path, output / path.name)
        manifest = json.loads(Path(scratch, "repo", "conversion.json").read_text())
        names = {path.name for path in shipped_files(output)}
        manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name in names}
        for drawing in [*state.glob("*.csv"), *state.glob("loss.png")]:
            (output / "demo").mkdir(exist_ok=True)
            shutil.copyfile(drawing, output / "demo" / drawing.name)
        (output / "conversion.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, help="training folder whose model is to be shipped")
    parser.add_argument("--output", type=Path, default=ROOT, help="with --state: where to write (default: this folder)")
    options = parser.parse_args()
    if options.state:
        ship(options.state, options.output)
        return
    if other := repeat():
        sys.exit(f"these files came out otherwise: {', '.join(other)}")
    print("the conversion reproduces the shipped checkpoint, bit for bit")


if __name__ == "__main__":
    main()
