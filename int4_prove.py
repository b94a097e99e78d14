# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Tries every int4 backend on a repo's own matrices, on this machine, and prints what was found.

    python int4_prove.py REPO                 on the GPU where there is one, else on the CPU
    python int4_prove.py REPO --device cpu

What this file offers:
    SCRIPT    its path, for the child process that loading a model on a GPU starts
    main      the command
"""

import argparse
import importlib
import sys
import types
from pathlib import Path

SCRIPT = str(Path(__file__).absolute())  # not resolved: the Hub's cache has links, whose targets have no neighbors
PACKAGE = "gemma3_int4"


def main() -> None:
    """The command: the report on standard output, in Markdown; all else on standard error."""
    parser = argparse.ArgumentParser(prog="int4_prove.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("repo", nargs="?", help="folder of an int4 repo, or its id on the Hub")
    parser.add_argument("--device", help="as cuda:0, mps, xpu or cpu; default: the GPU, where there is one")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the model")
    parser.add_argument("--here", action="store_true", help="in this process, which a wrong kernel may end")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trial:
        _module("int4_trial").child(args.trial)
    elif args.repo is None:
        parser.error("which repo? Give a folder or an id on the Hub.")
    else:
        _prove(args)


def _module(name: str) -> types.ModuleType:
    """One of our files. They import each other relatively, so that their folder has to be a package."""
    if PACKAGE not in sys.modules:
        package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        package.__path__ = [str(Path(SCRIPT).parent)]
    return importlib.import_module(f"{PACKAGE}.{name}")


def _prove(args: argparse.Namespace) -> None:
    import torch

    modeling, record, backend = map(_module, ("modeling_gemma3_int4", "int4_record", "int4_backend"))
    device = torch.device(args.device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = getattr(torch, args.dtype)
    try:
        files, side_file = modeling.weight_files(args.repo)
        sources = record.read_sources(files, side_file)
    except (OSError, modeling.Int4LoadError) as error:
        sys.exit(f"int4_prove.py: {error}")
    if not sources:
        sys.exit(f"int4_prove.py: {args.repo} holds no int4 matrix.")
    words = {"again", "here"} if args.here else {"again"}
    proof = record.prove(sources, device, dtype, words)
    print(f"# int4 backends on {proof.facts['device']}\n\n{proof.text()}\n")
    if not backend.needs_proof(device):
        rule = {(s.outputs, s.inputs): backend.choose_backend(device, dtype, s.outputs, s.inputs).name for s in sources}
        same = all(choice.backend == rule[shape] for shape, choice in proof.choices.items())
        names = ", ".join(dict.fromkeys(rule.values()))
        print(f"By rule a CPU gets {names}: {'the same' if same else 'not what is fastest here'}.")


if __name__ == "__main__":
    main()
