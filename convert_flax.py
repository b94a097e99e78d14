"""Kaggle's Gemma 3 QAT INT4 checkpoint (Flax) -> a complete Hugging Face repo in AWQ format.

    python convert_flax.py convert --checkpoint DIR --output DIR             a checkpoint becomes a repo
    python convert_flax.py export REPO --format gguf --output DIR            a converted repo, for another engine
    python convert_flax.py plan --checkpoint DIR                             what a conversion would do
    python convert_flax.py verify REPO [--checkpoint DIR]                    proof of a finished repo
    python convert_flax.py quality REPO --text FILE                          perplexity on a text

Each takes --help. Exit code 0, 2 after an error that says what to do, or 130 if interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from conversion.errors import BadInput, NoSpace
from conversion.options import (
    DTYPES,
    EMBEDDINGS,
    FORMATS,
    GGUF_EMBEDDINGS,
    NO_FLOAT16,
    SCALE_DTYPES,
    SHARD_BYTES,
    VARIANTS,
)

VERBS = ("convert", "export", "plan", "verify", "quality")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 for an error that the user can do something about, or 130 if interrupted.

    Raises:
        SystemExit: after --help (0), and for words that the parser does not take (2).
    """
    try:
        chosen = parse(sys.argv[1:] if arguments is None else arguments)
        command = import_module(f"conversion.commands.{chosen.verb}")  # libraries, seconds: only when they are needed
        if signal.getsignal(signal.SIGINT) is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _let_bars_end_with_the_process()
        command.run(chosen)
    except (BadInput, NoSpace, OSError) as error:
        print(f"convert_flax: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        sets = "-r requirements/convert.txt" + " -r requirements/model.txt" * (chosen.verb == "quality")
        print(f"convert_flax: error: {error.name} is not installed; type: pip install {sets}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("; ".join(["convert_flax: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    """The command line as options, `verb` among them.

    Without a verb the words are those of `convert`; with --from-repo, once an option of it, those of `export`.

    Raises:
        BadInput: an option was given without its fellow.
        SystemExit: after --help, and for words that are not understood.
    """
    parser, verbs = _parsers()
    words = list(words)
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        words.insert(0, "convert")
    chosen, unknown = parser.parse_known_args(_from_repo(words))
    if unknown:
        verbs[chosen.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(chosen, "gguf_embedding", None) and chosen.format != "gguf":
        raise BadInput(f"--gguf-embedding: is for --format gguf, not for {chosen.format}")
    if chosen.verb == "verify" and chosen.source_hashes and not chosen.checkpoint:
        raise BadInput("--source-hashes: are those of a checkpoint; name it with --checkpoint")
    return chosen


def _from_repo(words: list[str]) -> list[str]:
    """`convert --from-repo DIR ...` as `export DIR ...`."""
    if words[:1] != ["convert"]:
        return words
    for place, word in enumerate(words):
        if word.startswith("--from-repo="):
            return ["export", word.partition("=")[2], *words[1:place], *words[place + 1 :]]
        if word == "--from-repo" and place + 1 < len(words):
            return ["export", words[place + 1], *words[1:place], *words[place + 2 :]]
    return words


class _Parser(argparse.ArgumentParser):
    """Errors in two lines: the usage, and what is wrong."""

    def __init__(self, **settings: object):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}convert_flax: error: {message.removeprefix('argument ')}\n")


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the whole command line, and that of each verb."""
    parser = _Parser(prog="convert_flax.py", usage=f"convert_flax.py {{{','.join(VERBS)}}} ...", description=__doc__)
    add_verb = parser.add_subparsers(dest="verb", metavar="VERB", required=True, help=argparse.SUPPRESS).add_parser
    verbs = {}
    for verb, options, words, does in (
        ("convert", _convert, "--checkpoint DIR --output DIR [option ...]", "Converts a checkpoint into a repo."),
        ("export", _export, f"REPO --format {{{','.join(FORMATS)}}} --output DIR", "Writes a converted repo anew."),
        ("plan", _plan, "--checkpoint DIR [option ...]", "Tells from metadata alone what a conversion would do."),
        ("verify", _verify, "REPO [--checkpoint DIR | --against REPO] [option ...]", "Proves a finished repo."),
        ("quality", _quality, "REPO --text FILE [option ...]", "Measures a converted repo on a text."),
    ):
        prog = f"convert_flax.py {verb}"
        verbs[verb] = add_verb(verb, prog=prog, usage=f"{prog} {words}", description=options.__doc__, help=does)
        options(verbs[verb])
    return parser, verbs


def _convert(parser: argparse.ArgumentParser) -> None:
    """Converts a checkpoint into a complete Hugging Face repo. Interrupted, the same command goes on."""
    add = parser.add_argument
    _add_conversion(parser, output_required=True)
    add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files: proves every byte")
    add("--verify", action="store_true", help="read all back and compare it with the source before it is done")
    add("--format", default="awq", choices=("awq", *FORMATS), help="of the output (default: awq)")
    _add_after(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    """Writes a converted AWQ repo for another engine: the same codes, read back and compared."""
    add = parser.add_argument
    add("repo", metavar="REPO", type=Path, help="folder of a converted AWQ repo")
    engines = "compressed-tensors for vLLM, gguf for llama.cpp, mlx for a Mac"
    add("--format", required=True, choices=FORMATS, help=engines)
    add("--output", type=Path, required=True, help="new or empty folder")
    _add_after(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    """Tells what a conversion would do, from the checkpoint's metadata alone: tensors, shards, disk, memory, time."""
    _add_conversion(parser, output_required=False)


def _verify(parser: argparse.ArgumentParser) -> None:
    """Checks a finished repo of any format against its hashes; given its source, number by number against that too."""
    add = parser.add_argument
    add("repo", metavar="REPO", type=Path, help="folder of a repo: AWQ, compressed-tensors or GGUF")
    add("--checkpoint", metavar="DIR", help="the Flax checkpoint it was made from")
    add("--against", metavar="REPO", type=Path, help="the AWQ repo it was exported from")
    add("--mmproj", metavar="FILE", type=Path, help="of a GGUF file, as for convert")
    add("--source-hashes", type=Path, help="output of sha256sum over the checkpoint's files; needs --checkpoint")
    _add_workers(parser, "tensors compared")


def _quality(parser: argparse.ArgumentParser) -> None:
    """Perplexity and bits per byte of a converted repo on a text, and the lm-eval command for it."""
    add = parser.add_argument
    add("repo", metavar="REPO", type=Path, help="folder of a converted repo, tokenizer included")
    add("--text", metavar="FILE", type=Path, required=True, help="a text file in UTF-8")
    add("--window", type=_count, default=2048, help="tokens that the model sees at a time (default: 2048)")
    add("--stride", type=_count, default=1024, help="how far the window moves (default: 1024); less takes longer")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    add("--dtype", type=_dtype, default="bfloat16", choices=DTYPES, help="to compute in (default: bfloat16)")


def _add_conversion(parser: argparse.ArgumentParser, output_required: bool) -> None:
    """The options that a conversion and its plan share."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", required=True, help="Orbax checkpoint, GGUF file, or kaggle:NAME, hf:REPO")
    add("--output", metavar="DIR", type=Path, required=output_required, help="new or empty folder for the repo")
    add("--mmproj", metavar="FILE", type=Path, help="vision tower of a GGUF file (default: the mmproj file beside it)")
    add("--config", type=Path, help="Gemma3Config or Gemma3TextConfig as JSON, for sizes that are not Google's")
    add("--variant", choices=VARIANTS, help="decides eos, chat template and base_model (default: kaggle:'s, else it)")
    add("--tokenizer", type=Path, help="folder of tokenizer files, or a SentencePiece tokenizer.model")
    add("--dtype", type=_dtype, default="bfloat16", choices=DTYPES, help="of what is not quantized (default: bfloat16)")
    add("--scale-dtype", default="auto", choices=SCALE_DTYPES, help="of the scales (default: auto)")
    add("--embedding", default="plain", choices=EMBEDDINGS, help="plain (default): any engine; int4: ours alone")
    add("--tolerance", type=_share, help="accept groups off the grid up to this deviation, relative to their absmax")
    add("--text-only", action="store_true", help="drop the vision tower and write a text model")
    add("--donor", help="folder or Hub repo (transformers) for tensors that the checkpoint lacks")
    add("--shard-size", type=_size, default=SHARD_BYTES, help="of a shard at most: 2GB (default), 500MB, ...")
    _add_workers(parser, "leaves converted")


def _add_after(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gguf-embedding", choices=GGUF_EMBEDDINGS, help="of a GGUF file (default: q4_0, as trained)")
    add("--push-to-hub", metavar="ID", help="upload the result to the Hub as ID; a new repo is private")


def _add_workers(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--workers", type=_count, default=os.cpu_count(), help=f"{what} at a time (default: all cores)")


def _dtype(text: str) -> str:
    if text == "float16":
        raise argparse.ArgumentTypeError(f"float16: {NO_FLOAT16}; choose {' or '.join(DTYPES)}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to below 1")
    return share


def _size(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a whole number and KB, MB or GB, as 5GB")
    return int(number) * units[unit]


def _let_bars_end_with_the_process() -> None:
    """tqdm's own lock is for processes too; where Python does not fork, it says of one that is left that it leaks."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _end_at_once(*_: object) -> NoReturn:
    """Ctrl-C while libraries are imported: nothing is under way, and not every library lets the interrupt through."""
    os.write(2, b"convert_flax: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end_at_once)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is kept where is told after a kill as after Ctrl-C
    code = main()
    if code == 130:  # no shutting down of Python: reads still under way in tensorstore's threads could abort it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
