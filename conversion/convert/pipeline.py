"""The conversion from end to end: checkpoint -> plan -> shards -> repo.

1. Every leaf is read, recovered, packed and written, several at a time; the scales wait as float32. The small files
   are written beside that, so that a tokenizer that is none does not come to light after the weights.
2. All scales known, their dtype is chosen and the shards are completed.
3. Card, index and manifest are added, and everything gets its final name at once.

Interrupted anywhere, the same command goes on from the last complete shard and ends with the same bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conversion.codes import GROUP_SIZE
from conversion.convert.leaf_writer import Cancelled, LeafFacts, ScaleFacts, write_leaf, write_plain
from conversion.convert.plan import NO_TOKENIZER, Plan, make_conversion_plan
from conversion.errors import BadInput, NoSpace, SourceLost
from conversion.folders.files import disk_bytes, sync, write_at, write_text
from conversion.folders.work_folder import WorkFolder
from conversion.formats.embedding import SIDE_FILE
from conversion.name_map import Entry
from conversion.options import Options
from conversion.proof.checkpoint_proof import prove_repo
from conversion.proof.manifest import MANIFEST
from conversion.proof.verify import check_repo
from conversion.shards import INDEX, Shard, ShardPlan, sha256
from conversion.small_files import repo_files
from conversion.small_files.model_card import model_card, precision
from conversion.source.source_hashes import check_source_hashes
from conversion.tensor_spec import TensorSpec

FLOAT16_NORMAL = (float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max))
LIBRARIES = ("numpy", "tensorstore", "transformers", "zstandard")


def convert(
    options: Options, report: Callable[[str], None] = print, export: Callable[[Path], None] | None = None
) -> None:
    """Converts a checkpoint into a complete repo at `options.output`.

    Args:
        options: what the user chose.
        report: takes one line per finding.
        export: takes the folder of the finished repo, which is then removed instead of published.

    Raises:
        BadInput: the input cannot be converted, or another process writes there; the output folder is as it was.
        SourceLost: the source went away; the work so far is kept in `OUTPUT/.partial`.
        NoSpace: the disk is full, or failed; likewise.
        KeyboardInterrupt: likewise.
    """
    started = time.monotonic()
    work = WorkFolder(options.output)
    plan = make_conversion_plan(options)
    with work:
        resumed = _convert(options, plan, work, report, publish=export is None)
        if resumed and export and options.verify:
            _verify(work.repo, plan, options, report)
        seconds = time.monotonic() - started
        report(
            f"{options.output}: {len(plan.entries)} leaves, {plan.source_bytes / 1e9:.2f} GB in {seconds:.1f} s "
            f"({plan.source_bytes / 1e6 / seconds:.0f} MB/s){_peak_memory()}"
        )
        if plan.tokenizer is None:
            report(f"WARNING: {NO_TOKENIZER}")
        if export:
            export(work.repo)
            work.remove()
    if resumed and not export and options.verify:  # only now are all files in one folder again
        _verify(options.output, plan, options, report)


def _convert(options: Options, plan: Plan, work: WorkFolder, report: Callable[[str], None], publish: bool) -> bool:
    """Fills the work folder and publishes it, or goes on where that was interrupted.

    Returns:
        Whether an earlier run had filled it.
    """
    if work.note:
        report(work.note)
    if not work.complete:
        _check_space(plan, work)
    if options.source_hashes:
        check_source_hashes(options.source_hashes, options.checkpoint, plan.checkpoint, options.workers, report)
    state = _state(options, plan)
    work.check(state)
    resumed = work.complete
    kept = f"the work so far is kept in {work.path}: repeat the command to go on"
    try:
        work.start(state)
        if not resumed:
            facts = _write_shards(options, plan, work, lambda: _write_small_files(options, plan, work.repo))
            _write_repo(options, plan, work, facts, report)
            if options.verify:
                _verify(work.repo, plan, options, report)
            work.finish()
        if publish:
            work.publish()
    except SourceLost as error:
        raise SourceLost(f"{error}; {kept}") from error
    except BadInput as error:
        raise work.discard(error) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    except OSError as error:
        raise NoSpace(f"{error}; {_too_large(work) if error.errno == errno.EFBIG else kept}") from error
    return resumed


def _too_large(work: WorkFolder) -> str:
    return (
        f"the disk or a limit (ulimit -f) takes no file as large as a shard: remove {work.path} and begin anew with a "
        f"smaller --shard-size (but a shard is never smaller than its largest tensor, with --embedding plain the "
        f"embedding), or give --output a folder on another disk"
    )


def _peak_memory() -> str:
    """What the process took at most, where the system tells it."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"


def _verify(repo: Path, plan: Plan, options: Options, report: Callable[[str], None]) -> None:
    prove_repo(check_repo(repo, options.workers, report), plan.checkpoint, options.workers, report)


def choose_scale_dtype(asked: str, scales: ScaleFacts) -> str:
    """The dtype of the scales in the shards.

    Unless the user asks for one: bfloat16 if exact for every group, else float16 if exact for every group, else float16
    if every scale is in its normal range, else float32.

    Raises:
        BadInput: float16 was asked for, and a scale is beyond its normal range and would be rounded.
    """
    smallest, largest = FLOAT16_NORMAL
    in_range = smallest <= scales.smallest and scales.largest <= largest
    if asked == "float16" and scales.inexact["float16"] and not in_range:
        raise BadInput(
            f"--scale-dtype float16: scales reach from {scales.smallest:.3g} to {scales.largest:.3g}, float16 holds "
            f"{smallest:.3g} to {largest:.3g}; use auto"
        )
    if asked != "auto":
        return asked
    for dtype in ("bfloat16", "float16"):
        if not scales.inexact[dtype]:
            return dtype
    return "float16" if in_range else "float32"


def exact_dtype(scales: ScaleFacts) -> str:
    """The narrowest dtype that holds every scale exactly."""
    return next(dtype for dtype in ("bfloat16", "float16", "float32") if not scales.inexact[dtype])


def _state(options: Options, plan: Plan) -> dict:
    """What must be the same for an interrupted conversion to go on."""
    return {
        "options": options.that_shape_the_output(),
        "config": plan.config.to_dict(),
        "source": plan.checkpoint.fingerprint(),
        "source files": [path.stat().st_mtime_ns for path in plan.checkpoint.files()],
        "tokenizer": str(plan.tokenizer),
        "converter": repo_files.code_fingerprint(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _check_space(plan: Plan, work: WorkFolder) -> None:
    """Raises BadInput if the disk cannot hold the work."""
    folder = next(parent for parent in (work.output, *work.output.absolute().parents) if parent.exists())
    there = sum(disk_bytes(path) for path in work.path.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(folder).free, plan.work_bytes - there
    if free < needed:
        raise BadInput(
            f"{work.output}: the conversion needs {needed / 1e9:.2f} GB of free disk, there is {free / 1e9:.2f} GB; "
            f"free some, or give --output a folder on another disk"
        )


def _write_shards(options: Options, plan: Plan, work: WorkFolder, beside: Callable[[], None]) -> list[LeafFacts]:
    """Step 1, and other work `beside` it. Shards that are complete from an earlier run are not touched."""
    done = {shard.filename: work.shard_facts(shard.filename) for shard in plan.shards}
    facts = {leaf.leaf: leaf for leaves in done.values() for leaf in map(LeafFacts.from_dict, leaves or [])}
    todo = [entry for entry in plan.entries if entry.leaf not in facts]
    side = work.open_scales(SIDE_FILE)
    shards = {i: _open_shard(work, shard) for i, shard in enumerate(plan.shards) if done[shard.filename] is None}
    unfinished = {i: sum(plan.shard_of[entry.leaf] == i for entry in todo) for i in shards}
    cancelled, lock = threading.Event(), threading.Lock()
    row_bytes = plan.text_config.hidden_size // GROUP_SIZE * 4
    total = sum(plan.checkpoint.leaves[entry.leaf].nbytes for entry in todo if entry.leaf not in plan.donated)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="converting", mininterval=0.5, disable=None)

    def side_scales(scales: np.ndarray, row: int) -> None:
        write_at(side, row * row_bytes, scales)

    def progress(nbytes: int) -> None:
        with lock:
            bar.update(nbytes)

    def one(entry: Entry) -> None:
        number = plan.shard_of[entry.leaf]
        shard = shards[number]
        if entry.leaf in plan.donated:
            values = [plan.donor.read(name, entry.tensor_shape) for name in entry.tensors]
            found = write_plain(entry, values, shard, options.dtype)
        else:
            found = write_leaf(
                entry,
                plan.checkpoint.leaves[entry.leaf],
                shard,
                dtype=options.dtype,
                embedding_mode=options.embedding,
                vocabulary=plan.text_config.vocab_size,
                tolerance=options.tolerance,
                side_scales=side_scales,
                progress=progress,
                cancelled=cancelled,
            )
        with lock:
            facts[entry.leaf] = found
            unfinished[number] -= 1
            complete = unfinished[number] == 0
        if complete:
            sync(side)
            shard.sync()
            mine = [facts[e.leaf].to_dict() for e in plan.entries if plan.shard_of[e.leaf] == number]
            work.mark_complete(shard.plan.filename, mine)

    with bar, ThreadPoolExecutor(options.workers) as pool:
        try:
            futures = [pool.submit(beside), *(pool.submit(one, entry) for entry in todo)]
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            errors = [future.exception() for future in finished if future.exception()]
        finally:  # an error or Ctrl-C: leaves under way stop at their next block
            cancelled.set()
            pool.shutdown(cancel_futures=True)
            for shard in shards.values():
                shard.close()
            os.close(side)
    if errors:
        raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
    return [facts[entry.leaf] for entry in plan.entries]


def _open_shard(work: WorkFolder, plan: ShardPlan) -> Shard:
    return Shard(plan, work.repo / plan.filename, work.path / "scales" / plan.filename)


def _write_small_files(options: Options, plan: Plan, repo: Path) -> None:
    """All that does not depend on the weights.

    Raises:
        BadInput: the tokenizer is none, or not one of this model.
    """
    if plan.tokenizer:
        repo_files.write_tokenizer(plan.tokenizer, repo, plan.config, options.variant)
    repo_files.write_json(repo / "config.json", repo_files.model_config(plan.config, options.dtype))
    generation = repo_files.generation_config(plan.config, options.variant, published=plan.size is not None)
    repo_files.write_json(repo / "generation_config.json", generation)
    repo_files.copy_code(repo)
    write_text(repo / "NOTICE", repo_files.NOTICE)


def _write_repo(
    options: Options, plan: Plan, work: WorkFolder, facts: list[LeafFacts], report: Callable[[str], None]
) -> None:
    """Steps 2 and 3, up to publishing."""
    repo = work.repo
    scales, embedding_scales = ScaleFacts(), ScaleFacts()
    for leaf in facts:
        if leaf.kind == "linear" or (leaf.kind == "embedding" and options.embedding == "int4"):
            scales.merge(leaf.scales)
        elif leaf.kind == "embedding":
            embedding_scales.merge(leaf.scales)
    scale_dtype = choose_scale_dtype(options.scale_dtype, scales)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda shard: _finish(_open_shard(work, shard), scale_dtype), plan.shards))
    if options.embedding == "plain":
        name = next(entry.tensors[0] for entry in plan.entries if entry.is_embedding).removesuffix("weight") + "scales"
        shape = (plan.text_config.vocab_size, plan.text_config.hidden_size // GROUP_SIZE)
        side = ShardPlan(SIDE_FILE, (TensorSpec(name, "scales", shape),))
        _finish(_open_shard(work, side), exact_dtype(embedding_scales))

    card = model_card(plan.config, plan.size and plan.size.name, options.variant, precision(facts))
    write_text(repo / "README.md", card)
    repo_files.write_json(
        repo / INDEX,
        {
            "metadata": {"total_size": sum(s.nbytes(scale_dtype) for shard in plan.shards for s in shard.tensors)},
            "weight_map": {spec.name: shard.filename for shard in plan.shards for spec in shard.tensors},
        },
    )
    manifest = {
        "source": {
            "fingerprint": plan.checkpoint.fingerprint(),
            "files": plan.checkpoint.file_sizes(),
            "donor": {"from": options.donor, "leaves": sorted(plan.donated)} if plan.donated else None,
        },
        "size": plan.size and plan.size.name,
        "options": options.that_shape_the_output(),
        "scales": _scale_summary(scales, scale_dtype),
        "embedding_scales": None,
        "versions": {name: version(name) for name in LIBRARIES},
        "leaves": [leaf.to_dict() for leaf in facts],
        "files": _hashes(repo, options.workers),
    }
    if embedding_scales.count:
        manifest["embedding_scales"] = _scale_summary(embedding_scales, exact_dtype(embedding_scales))
    repo_files.write_json(repo / MANIFEST, manifest)
    _report_findings(facts, manifest, report)
    if not options.source_hashes:
        report(
            "source files: not compared with hashes (--source-hashes); a flipped bit outside the int4 grid, or one "
            "that turns a code into another, would not be seen"
        )


def _finish(shard: Shard, scale_dtype: str) -> None:
    shard.finish(scale_dtype)
    shard.close()


def _scale_summary(scales: ScaleFacts, dtype: str) -> dict:
    return {
        "dtype": dtype,
        "count": scales.count,
        "inexact": scales.inexact[dtype],
        "worst_relative_error": scales.worst_relative[dtype],
        "smallest": scales.smallest,
        "largest": scales.largest,
    }


def _hashes(repo: Path, workers: int) -> dict[str, str]:
    """SHA-256 of every file but the manifest itself."""
    names = sorted(path.name for path in repo.iterdir() if path.name != MANIFEST)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(repo / name), names), strict=True))


def _report_findings(facts: list[LeafFacts], manifest: dict, report: Callable[[str], None]) -> None:
    for key, what in ("scales", "scales of the shards"), ("embedding_scales", "scales of the embedding"):
        if summary := manifest[key]:
            report(
                f"{what}: {summary['dtype']}, {summary['inexact']} of {summary['count']} rounded, "
                f"worst relative error {summary['worst_relative_error']:.3g}"
            )
    for leaf in facts:
        if leaf.inexact:
            report(
                f"{leaf.leaf}: {leaf.inexact} of {leaf.groups} groups are inexact, worst deviation {leaf.worst:.3g} of "
                f"the group's largest weight"
            )
    if donor := manifest["source"]["donor"]:
        report(f"from {donor['from']}: {', '.join(donor['leaves'])}")
