"""Kaggle's Gemma 3 QAT INT4 checkpoint (Flax) -> a complete Hugging Face repo in AWQ format.

    python convert_flax.py --checkpoint DIR --output DIR        convert
    python convert_flax.py --from-repo DIR --format gguf --output DIR      a converted repo, for another engine
    python convert_flax.py plan --checkpoint DIR                what a conversion would do, from metadata alone
    python convert_flax.py verify OUTPUT [--checkpoint DIR]     prove a finished repo against its source
    python convert_flax.py quality OUTPUT --text FILE           perplexity on a text, and the lm-eval command

Each takes --help. Exit code 0, 2 after an error that says what to do, or 130 if interrupted.
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
from conversion.export import FORMATS, check_export, export
from conversion.flax_checkpoint import FlaxCheckpoint
from conversion.hub_repo import WorkFolder
from conversion.hub_upload import push
from conversion.pipeline import convert
from conversion.plan import NO_TOKENIZER, Options, check_options, describe, make_conversion_plan
from conversion.shards import SHARD_BYTES
from conversion.source_hashes import check_source_hashes
from conversion.verify import check_repo, prove_repo

PLAN = "What a conversion would do, from the checkpoint's metadata alone: tensors, shards, disk space, memory and time."


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
    except (BadInput, NoSpace, OSError) as error:
        print(f"convert_flax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("; ".join(["convert_flax: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def _verify(words: list[str]) -> None:
    """Checks a finished repo, against its source too if that is given."""
    description = (
        "Checks a finished repo against its own hashes, and with --checkpoint number by number against its source."
    )
    parser = argparse.ArgumentParser(prog="convert_flax.py verify", allow_abbrev=False, description=description)
    add = parser.add_argument
    add("output", type=Path, help="folder of a converted repo")
    add("--checkpoint", help="the checkpoint it was made from")
    add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files; needs --checkpoint")
    add("--workers", type=int, default=os.cpu_count(), help="tensors compared at a time (default: all cores)")
    chosen = parser.parse_args(words)
    if chosen.workers < 1:
        raise BadInput(f"--workers {chosen.workers}: give 1 or more")
    if chosen.source_hashes and not chosen.checkpoint:
        raise BadInput("--source-hashes: are those of a checkpoint; name it with --checkpoint")
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
    if chosen.gguf_embedding and chosen.format != "gguf":
        raise BadInput(f"--gguf-embedding: is for --format gguf, not for {chosen.format}")
    gguf_embedding = chosen.gguf_embedding or "q4_0"
    if chosen.from_repo:
        parser = argparse.ArgumentParser(prog="convert_flax.py --from-repo DIR", allow_abbrev=False)
        parser.add_argument("--output", type=Path, required=True)
        output = parser.parse_args(rest).output
        export(chosen.from_repo, output, chosen.format, gguf_embedding=gguf_embedding)
    else:
        options = _options(words, "convert", chosen.format)
        output = options.output
        if chosen.format == "awq":
            convert(options)
        else:
            _convert_and_export(options, chosen.format, gguf_embedding)
    if chosen.push_to_hub:
        print(push(output, chosen.push_to_hub))


def _convert_and_export(options: Options, kind: str, gguf_embedding: str) -> None:
    """Other formats than AWQ come from an AWQ repo, made for it and removed afterwards."""
    output, awq = options.output, options.output.with_name(f"{options.output.name}.awq")
    options = dataclasses.replace(options, output=awq)
    if kind == "gguf" and make_conversion_plan(options).tokenizer is None:
        raise BadInput(f"--format gguf: {NO_TOKENIZER}")
    repo = convert(options, publish=False)
    try:
        export(repo, output, kind, gguf_embedding=gguf_embedding)
    except BadInput as error:
        kept = f"the AWQ repo is done and waits: without --format and with --output {awq} the same command publishes it"
        raise BadInput(f"{error}; {kept}") from error
    shutil.rmtree(awq)


def _add_format(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", default="awq", choices=("awq", *FORMATS), help="of the output (default: awq)")
    add("--from-repo", type=Path, help="a converted AWQ repo to write in another format, instead of --checkpoint")
    add("--push-to-hub", metavar="ID", help="upload the result to the Hub as ID; a new repo is private")
    add("--gguf-embedding", choices=("q4_0", "f16"), help="of a GGUF file (default: q4_0, as trained)")


def _options(words: list[str], command: str, kind: str = "awq") -> Options:
    """The options of a conversion or its plan, all checked before a checkpoint is downloaded."""
    planning = command == "plan"
    parser = argparse.ArgumentParser(
        prog="convert_flax.py plan" if planning else "convert_flax.py",
        description=PLAN if planning else __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="Orbax checkpoint, Kaggle's archive, or kaggle:gemma3-27b-it-int4")
    add("--output", type=Path, required=not planning, help="new or empty folder for the repo")
    add("--config", type=Path, help="Gemma3Config or Gemma3TextConfig as JSON, for sizes that are not Google's")
    add("--variant", help="it or pt: decides eos, chat template and base_model (default: the kaggle: name's, else it)")
    add("--tokenizer", type=Path, help="folder of tokenizer files, or a SentencePiece tokenizer.model")
    add("--dtype", default="bfloat16", help="of what is not quantised: bfloat16 (default) or float32")
    add("--scale-dtype", default="auto", help="auto (default), bfloat16, float16 or float32")
    add("--embedding", default="plain", help="plain (default, for any engine) or int4 (for this project's model)")
    add("--tolerance", type=float, help="accept groups off the grid up to this deviation, relative to their absmax")
    add("--text-only", action="store_true", help="drop the vision tower and write a text model")
    add("--donor", help="folder or Hub repo (transformers) for tensors that the checkpoint lacks")
    add("--shard-size", type=_size, default=SHARD_BYTES, help="of a shard at most: 2GB (default), 500MB, ...")
    add("--workers", type=int, default=os.cpu_count(), help="leaves converted at a time (default: all cores)")
    if not planning:
        add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files: proves every byte")
        add("--verify", action="store_true", help="read all back and compare it with the source before it is done")
        _add_format(parser)
    chosen = vars(parser.parse_args(words))
    given = chosen["checkpoint"]
    chosen |= {"checkpoint": Path(given), "variant": _variant(chosen["variant"], given)}
    options = Options(**{name: value for name, value in chosen.items() if name in Options.__dataclass_fields__})
    check_options(options)
    if kind != "awq":
        check_export(options.output, kind)
    elif options.output:
        WorkFolder(options.output)
    return dataclasses.replace(options, checkpoint=_checkpoint(given))


def _variant(asked: str | None, checkpoint: str) -> str:
    """What was asked for, or what the name of a checkpoint of Kaggle's says, or `it`."""
    named = next((v for v in ("it", "pt") if checkpoint.startswith("kaggle:") and f"-{v}-" in checkpoint), None)
    if asked and named and asked != named:
        raise BadInput(f"--variant {asked}: {checkpoint} is {named}; leave --variant out")
    return asked or named or "it"


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
    code = main()
    if code == 130:  # no shutting down of Python: reads still under way in tensorstore's threads could abort it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
