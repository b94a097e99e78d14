"""The shipped checkpoint's files: made from weights by way of a Kaggle-layout checkpoint, compared, copied."""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, Gemma3Config

import convert_flax

from .flax_export import export_flax
from .places import ROOT
from .tokenizer import write_processor_files
from .weights import weights_of_repo, weights_of_state

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
    """Returns the names of the checkpoint's files that are not the same bytes in both folders.

    config.json names the version of transformers that wrote it; that may be another one.
    """

    def contents(folder: Path) -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in shipped_files(folder)}
        if "config.json" in found:
            found["config.json"] = re.sub(rb'"transformers_version": "[^"]*"', b"", found["config.json"])
        return found

    left, right = contents(one), contents(other)
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
