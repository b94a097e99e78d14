"""The conversion from end to end: checkpoint -> plan -> shards -> repo.

1. Every leaf is read, recovered, packed and written, several at a time; the scales wait as float32. The small files
   are written beside that, so that a tokenizer that is none does not come to light after the weights.
2. All scales known, their dtype is chosen and the shards are completed.
3. Card, index and manifest are added, and everything gets its final name at once.

Interrupted anywhere, the same command goes on from the last complete shard and ends with the same bytes.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conversion.convert.adoption import Adoption
from conversion.convert.completion import complete_repo
from conversion.convert.disk_space import check_space, too_large
from conversion.convert.leaf_conversion import LeafConversion
from conversion.convert.manifest import versions
from conversion.convert.plan import NO_TOKENIZER, Plan, make_plan
from conversion.errors import BadInput, NoSpace, SourceLost
from conversion.folders.files import write_text
from conversion.folders.work_folder import WorkFolder
from conversion.options import Options
from conversion.proof.checkpoint_proof import prove_repo
from conversion.proof.verify import check_repo
from conversion.small_files import repo_files
from conversion.small_files.provenance import license_files
from conversion.source.source_hashes import check_source_hashes


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
    plan = make_plan(options)
    with work:
        resumed = _convert(options, plan, work, report, publish=export is None)
        if resumed and export and options.verify:
            _verify(work.repo, plan, options, report)
        seconds = time.monotonic() - started
        read = f"{len(plan.parts)} {plan.source.unit}, {plan.source_bytes / 1e9:.2f} GB"
        report(
            f"{options.output}: {read} in {seconds:.1f} s "
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
        check_space(plan, work)
    if options.source_hashes:
        check_source_hashes(options.source_hashes, options.checkpoint, plan.source, options.workers, report)
    state = _state(options, plan)
    work.check(state)
    resumed = work.complete
    kept = f"the work so far is kept in {work.path}: repeat the command to go on"
    try:
        work.start(state)
        if not resumed:
            step = (
                Adoption(options, plan.source, plan.parts, work.repo)
                if plan.adopted
                else LeafConversion(options, plan, work)
            )
            facts = step.run(lambda: _write_small_files(options, plan, work.repo))
            complete_repo(options, plan, work, facts, report)
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
        raise NoSpace(f"{error}; {too_large(work) if error.errno == errno.EFBIG else kept}") from error
    return resumed


def _peak_memory() -> str:
    """What the process took at most, where the system tells it."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"


def _verify(repo: Path, plan: Plan, options: Options, report: Callable[[str], None]) -> None:
    prove_repo(check_repo(repo, options.workers, report), plan.source, options.workers, report)


def _state(options: Options, plan: Plan) -> dict:
    """What must be the same for an interrupted conversion to go on."""
    return {
        "options": options.that_shape_the_output() | {"variant": plan.variant},
        "config": plan.config.to_dict(),
        "source": plan.source.files.fingerprint(),
        "source files": plan.source.files.times(),
        "tokenizer": str(plan.tokenizer),
        "converter": repo_files.code_fingerprint(),
        "versions": versions(plan.source),
    }


def _write_small_files(options: Options, plan: Plan, repo: Path) -> None:
    """All that does not depend on the weights.

    Raises:
        BadInput: the tokenizer is none, or not one of this model.
    """
    if plan.tokenizer:
        plan.tokenizer.write(repo, plan.config, plan.variant)
    repo_files.write_json(repo / "config.json", repo_files.model_config(plan.config, options.dtype, plan.kept))
    if not (repo / "generation_config.json").exists():  # the source's own, with its tokenizer
        generation = repo_files.generation_config(plan.config, plan.variant, published=plan.size is not None)
        repo_files.write_json(repo / "generation_config.json", generation)
    repo_files.copy_code(repo)
    write_text(repo / "NOTICE", repo_files.notice(plan.source.kind))
    for file in license_files(plan.source.path):
        shutil.copyfile(file, repo / file.name)
