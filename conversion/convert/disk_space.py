"""Whether a disk can hold a conversion."""

from __future__ import annotations

import shutil

from conversion.convert.plan import Plan
from conversion.errors import BadInput
from conversion.folders.files import disk_bytes
from conversion.folders.work_folder import WorkFolder


def check_space(plan: Plan, work: WorkFolder) -> None:
    """Raises BadInput if the disk cannot hold the work."""
    folder = next(parent for parent in (work.output, *work.output.absolute().parents) if parent.exists())
    there = sum(disk_bytes(path) for path in work.path.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(folder).free, plan.work_bytes - there
    if free < needed:
        raise BadInput(
            f"{work.output}: the conversion needs {needed / 1e9:.2f} GB of free disk, there is {free / 1e9:.2f} GB; "
            f"free some, or give --output a folder on another disk"
        )


def too_large(work: WorkFolder) -> str:
    """What to do where no file may be as large as a shard."""
    return (
        f"the disk or a limit (ulimit -f) takes no file as large as a shard: remove {work.path} and begin anew with a "
        f"smaller --shard-size (but a shard is never smaller than its largest tensor, with --embedding plain the "
        f"embedding), or give --output a folder on another disk"
    )
