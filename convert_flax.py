"""Kaggle's Gemma 3 QAT INT4 checkpoint (Flax) -> a complete Hugging Face repo in AWQ format.

    python convert_flax.py --checkpoint DIR --output DIR        convert
    python convert_flax.py --from-repo DIR --format gguf --output DIR      a converted repo, for another engine
    python convert_flax.py plan --checkpoint DIR                what a conversion would do, from metadata alone
    python convert_flax.py verify OUTPUT [--checkpoint DIR]     prove a finished repo against its source
    python convert_flax.py quality OUTPUT --text FILE           perplexity on a text, and the lm-eval command

Exit code 0, or 2 after a one-line error.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

from conversion.errors import BadInput, NoSpace
from conversion.export import FORMATS, export
from conversion.flax_checkpoint import FlaxCheckpoint
from conversion.hub_upload import push
from conversion.pipeline import convert
from conversion.plan import Options, describe, make_conversion_plan
from conversion.shards import SHARD_BYTES
from conversion.source_hashes import check_source_hashes
from conversion.verify import check_repo, prove_repo


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 for an error that the user can do something about, or 130 if interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and words[0] in ("plan", "verify", "quality", "convert") else "convert"
    try:
        if command == "plan":
            options = _options(words, "plan")
            print(describe(make_conversion_plan(options), options))
        elif command == "verify":
            _verify(words)
        elif command == "quality":
            _quality(words)
        else:
            _convert(words)
    except (BadInput, NoSpace) as error:
        print(f"convert_flax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("; ".join(["convert_flax: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def _verify(words: list[str]) -> None:
    """Checks a finished repo, against its source too if that is given."""
    parser = argparse.ArgumentParser(prog="convert_flax.py verify", allow_abbrev=False)
    add = parser.add_argument
    add("output", type=Path, help="folder of a converted repo")
    add("--checkpoint", help="the checkpoint it was made from")
    add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files")
    add("--workers", type=int, default=os.cpu_count(), help="tensors compared at a time (default: all cores)")
    chosen = parser.parse_args(words)
    repo = check_repo(chosen.output, chosen.workers, print)
    if chosen.checkpoint:
        folder = _checkpoint(chosen.checkpoint)
        checkpoint = FlaxCheckpoint(folder)
        if chosen.source_hashes:
            check_source_hashes(chosen.source_hashes, folder, checkpoint, chosen.workers, print)
        prove_repo(repo, checkpoint, chosen.workers, print)


def _quality(words: list[str]) -> None:
    """Measures a finished repo on a text."""
    from conversion.quality import measure  # no other command runs a model

    description = "Perplexity of a converted repo on a text, and the lm-eval command for it."
    parser = argparse.ArgumentParser(prog="convert_flax.py quality", allow_abbrev=False, description=description)
    add = parser.add_argument
    add("output", type=Path, help="folder of a converted repo, tokenizer included")
    add("--text", type=Path, required=True, help="a text file in UTF-8")
    add("--window", type=int, default=2048, help="tokens that the model sees at a time (default: 2048)")
    add("--stride", type=int, default=1024, help="how far the window moves (default: 1024); less takes longer")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="to compute in (default: bfloat16)")
    chosen = vars(parser.parse_args(words))
    measure(chosen.pop("output"), chosen.pop("text"), **chosen, report=print)


def _convert(words: list[str]) -> None:
    """Converts a checkpoint or, with --from-repo, a converted repo; uploads the result if asked."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_format(parser)
    chosen, rest = parser.parse_known_args(words)
    if chosen.from_repo:
        parser = argparse.ArgumentParser(prog="convert_flax.py --from-repo DIR", allow_abbrev=False)
        parser.add_argument("--output", type=Path, required=True)
        output = parser.parse_args(rest).output
        export(chosen.from_repo, output, chosen.format, gguf_embedding=chosen.gguf_embedding)
    else:
        options = _options(words, "convert")
        output = options.output
        if chosen.format == "awq":
            convert(options)
        else:
            _convert_and_export(options, chosen.format, chosen.gguf_embedding)
    if chosen.push_to_hub:
        print(push(output, chosen.push_to_hub))


def _convert_and_export(options: Options, kind: str, gguf_embedding: str) -> None:
    """Other formats than AWQ come from an AWQ repo, made for it and removed afterwards."""
    awq = options.output.with_name(f"{options.output.name}.awq")
    if (awq / "conversion.json").exists():
        raise BadInput(f"{awq}: a finished AWQ repo of an earlier run; go on with --from-repo {awq}, or remove it")
    convert(dataclasses.replace(options, output=awq))
    export(awq, options.output, kind, gguf_embedding=gguf_embedding)
    shutil.rmtree(awq)


def _add_format(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", default="awq", choices=("awq", *FORMATS), help="of the output (default: awq)")
    add("--from-repo", type=Path, help="a converted AWQ repo to write in another format, instead of --checkpoint")
    add("--push-to-hub", metavar="ID", help="upload the finished repo to the Hub as ID")
    add("--gguf-embedding", default="q4_0", choices=("q4_0", "f16"), help="of a GGUF file (default: q4_0, as trained)")


def _options(words: list[str], command: str) -> Options:
    parser = argparse.ArgumentParser(prog="convert_flax.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="Orbax checkpoint, Kaggle's archive, or kaggle:gemma3-27b-it-int4")
    add("--output", type=Path, required=command == "convert", help="new or empty folder for the repo")
    add("--config", type=Path, help="Gemma3Config or Gemma3TextConfig as JSON, for sizes that are not Google's")
    add("--variant", default="it", help="it (default) or pt: decides eos, chat template and base_model")
    add("--tokenizer", type=Path, help="folder of tokenizer files, or a SentencePiece tokenizer.model")
    add("--dtype", default="bfloat16", help="of what is not quantised: bfloat16 (default) or float32")
    add("--scale-dtype", default="auto", help="auto (default), bfloat16, float16 or float32")
    add("--embedding", default="plain", help="plain (default, for any engine) or int4 (for this project's model)")
    add("--tolerance", type=float, help="accept groups off the grid up to this deviation, relative to their absmax")
    add("--text-only", action="store_true", help="drop the vision tower and write a text model")
    add("--donor", help="folder or Hub repo (transformers) for tensors that the checkpoint lacks")
    add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files: proves every byte")
    add("--verify", action="store_true", help="read everything back and compare it with the source before it is done")
    add("--shard-size", type=_size, default=SHARD_BYTES, help="of a shard at most: 2GB (default), 500MB, ...")
    add("--workers", type=int, default=os.cpu_count(), help="leaves converted at a time (default: all cores)")
    _add_format(parser)
    chosen = vars(parser.parse_args(words))
    chosen["checkpoint"] = _checkpoint(chosen["checkpoint"])
    return Options(**{name: value for name, value in chosen.items() if name in Options.__dataclass_fields__})


def _checkpoint(given: str) -> Path:
    """A folder as it is; `kaggle:NAME` is downloaded first."""
    if not given.startswith("kaggle:"):
        return Path(given)
    from conversion.kaggle import download  # only those who download need kagglehub

    return download(given)


def _size(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a whole number and KB, MB or GB, as 5GB")
    return int(number) * units[unit]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is kept where is told after a kill as after Ctrl-C
    sys.exit(main())
