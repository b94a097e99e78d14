"""A converted repo in AWQ format -> the same codes in another engine's format, proven by reading them back.

* compressed-tensors: a complete Hugging Face repo.
* gguf: `model-Q4_0.gguf` or `model-Q4_0-embedding-F16.gguf`, and `mmproj-F16.gguf` if the model sees.

Both with a card and, if the repo has them, its NOTICE and LICENSE.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from conversion.convert.pipeline import convert
from conversion.convert.plan import NO_TOKENIZER, check_options, make_conversion_plan
from conversion.errors import BadInput, NoSpace
from conversion.folders.files import write_text
from conversion.folders.places import check_apart
from conversion.folders.work_folder import WorkFolder, check_finished
from conversion.formats import compressed_tensors
from conversion.options import FORMATS, Options
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.shards import INDEX, Shard, plan_shards, sha256
from conversion.small_files.model_card import export_card
from conversion.small_files.repo_files import TOKENIZER_FILES, write_json


def export(
    source: Path,
    output: Path,
    kind: str,
    *,
    gguf_embedding: str = "q4_0",
    report: Callable[[str], None] = print,
) -> None:
    """Writes a converted repo in another format.

    Args:
        source: a repo in AWQ format, as convert_flax.py writes it.
        output: a new or empty folder.
        kind: one of `FORMATS`.
        gguf_embedding: `q4_0` or `f16`.
        report: takes one line per finding.

    Raises:
        BadInput: the source is no such repo, or the format cannot hold it; the output folder is as it was.
        NoSpace: the disk is full.
    """
    check_apart(output, {"REPO": source})
    check_export(output, kind)
    check_finished(source)
    with WorkFolder(output) as work:
        _export(source, work, kind, gguf_embedding, report)


def convert_and_export(
    options: Options,
    kind: str,
    *,
    gguf_embedding: str = "q4_0",
    report: Callable[[str], None] = print,
) -> None:
    """Converts a checkpoint to another format, by way of an AWQ repo that is removed afterwards.

    Args:
        options: what the user chose, for the output in the other format.
        kind, gguf_embedding, report: as for `export`.

    Raises:
        BadInput, SourceLost, NoSpace, KeyboardInterrupt: as for `convert` and `export`.
    """
    output = options.output
    check_options(options)
    check_export(output, kind)
    awq = awq_folder(output)
    options = dataclasses.replace(options, output=awq)
    if kind == "gguf" and make_conversion_plan(options).tokenizer is None:
        raise BadInput(f"--format gguf: {NO_TOKENIZER}")

    def export_repo(repo: Path) -> None:
        try:
            _export(repo, work, kind, gguf_embedding, report)
        except BadInput as error:
            kept = f"the AWQ repo is done and waits: without --format and with --output {awq} the same command"
            raise BadInput(f"{error}; {kept} publishes it") from error

    with WorkFolder(output) as work:
        convert(options, report, export_repo)
    with suppress(OSError):  # an earlier run made it, or somebody put something there
        awq.rmdir()


def awq_folder(output: Path) -> Path:
    """Where the AWQ repo waits while it is exported to `output`: one place, however the folder is spelled."""
    output = output.resolve()
    return output.with_name(f"{output.name}.awq")


def _export(source: Path, work: WorkFolder, kind: str, gguf_embedding: str, report: Callable[[str], None]) -> None:
    """Fills the work folder from a repo and publishes it, or goes on where that was interrupted."""
    if work.note:
        report(work.note)
    repo = AwqRepo(source)
    times = {path.name: path.stat().st_mtime_ns for path in sorted(source.iterdir()) if path.is_file()}
    state = {"source": str(source.resolve()), "source files": times, "format": kind, "gguf_embedding": gguf_embedding}
    work.check(state)
    try:
        work.start(state)
        if not work.complete:
            _write(repo, work, kind, gguf_embedding, report)
        work.publish()
    except BadInput as error:
        raise work.discard(error) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("repeat the command to go on") from None
    except OSError as error:
        hint = "the disk takes no file as large as this; " if error.errno == errno.EFBIG else ""
        raise NoSpace(f"{error}; {hint}repeat the command to go on, or remove {work.path}") from error


def _write(repo: AwqRepo, work: WorkFolder, kind: str, gguf_embedding: str, report: Callable[[str], None]) -> None:
    """Everything that is published."""
    if kind == "gguf":
        _write_gguf(repo, work.repo, gguf_embedding, report)
    else:
        _write_compressed_tensors(repo, work, report)
    _copy(repo.path, work.repo, ("NOTICE", "LICENSE"))
    card = (repo.path / "README.md").read_text() if (repo.path / "README.md").is_file() else ""
    write_text(work.repo / "README.md", export_card(card, kind, gemma=(repo.path / "NOTICE").is_file()))
    names = sorted({path.name for path in work.repo.iterdir()} - {"conversion.json"})
    write_json(work.repo / "conversion.json", {"files": {name: sha256(work.repo / name) for name in names}})
    work.finish([*names, "conversion.json"])


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copies those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def check_export(output: Path, kind: str) -> None:
    """Raises BadInput for what can be known before there is a repo to export."""
    if kind not in FORMATS:
        raise BadInput(
            f"--format {kind}: a converted repo is a repo in AWQ format already; choose {' or '.join(FORMATS)}"
        )
    if kind == "gguf" and find_spec("gguf") is None:
        raise BadInput("GGUF files are written by the gguf library, which is not installed: pip install gguf")
    WorkFolder(output)


def _write_compressed_tensors(repo: AwqRepo, work: WorkFolder, report: Callable[[str], None]) -> None:
    plans = plan_shards(compressed_tensors.specs(repo))
    place = {spec.name: plan.filename for plan in plans for spec in plan.tensors}
    shards = {plan.filename: Shard(plan, work.repo / plan.filename, work.path / "scales" / "none") for plan in plans}
    for name, start, part in compressed_tensors.values(repo):
        shards[place[name]].write(name, part, start)
    for shard in shards.values():
        shard.finish("float32")
        shard.close()
    total = sum(spec.nbytes() for plan in plans for spec in plan.tensors)
    write_json(work.repo / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    write_json(work.repo / "config.json", compressed_tensors.config(repo))
    _copy(repo.path, work.repo, ("generation_config.json", *TOKENIZER_FILES))
    written = {name: SafetensorsFile(work.repo / filename) for name, filename in place.items()}
    for name in repo.linears:
        codes, scales = repo.linear(name)
        packed, scale = (written[f"{name}.{part}"].read(f"{name}.{part}") for part in ("weight_packed", "weight_scale"))
        _must_equal(name, codes, compressed_tensors.unpack(packed))
        _must_equal(name, scales, scale)
    report(f"codes: all of {len(repo.linears)} linears equal, scales too")


def _write_gguf(repo: AwqRepo, folder: Path, embedding: str, report: Callable[[str], None]) -> None:
    import gguf  # a conversion to AWQ does without it

    from conversion.formats import gguf as gguf_format

    path = folder / ("model-Q4_0.gguf" if embedding == "q4_0" else "model-Q4_0-embedding-F16.gguf")
    rounding = gguf_format.write_language_model(repo, path, embedding=embedding)
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for name in repo.linears:
        codes, scales = repo.linear(name)
        read_codes, read_scales = gguf_format.unpack(written[gguf_format.tensor_name(repo, name)])
        _must_equal(name, codes, read_codes)
        _must_equal(name, scales.astype(np.float16), read_scales)
    if embedding == "q4_0":
        blocks = written[gguf_format.tensor_name(repo, repo.embedding)]
        start = 0
        for codes, scales in repo.embedding_blocks(len(blocks)):
            read_codes, read_scales = gguf_format.unpack(blocks[start : start + len(codes)])
            _must_equal(repo.embedding, codes, read_codes)
            _must_equal(repo.embedding, scales.astype(np.float16), read_scales)
            start += len(codes)
    report(
        f"codes: all of {len(repo.linears)} linears equal" + (", the embedding's too" if embedding == "q4_0" else "")
    )
    inexact = f"{rounding.inexact} of {rounding.groups} rounded to float16"
    report(f"scales: {inexact}, relatively by {rounding.worst:.2g} at most")
    if hasattr(repo.config, "vision_config"):
        gguf_format.write_vision(repo, folder / "mmproj-F16.gguf")


def _must_equal(name: str, expected: np.ndarray, found: np.ndarray) -> None:
    if not np.array_equal(expected, found):
        wrong = np.count_nonzero(expected != found)
        raise BadInput(f"{name}: {wrong} values were read back other than written; check the disk, and begin anew")
