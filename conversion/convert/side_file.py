"""The side file of an embedding whose source has floats alone: its scales, found again and proven in every element.

Our model recovers the codes from the embedding with them, and holds it as int4. An embedding that lies on no grid keeps
its floats, and there is no side file.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.facts import ScaleFacts
from conversion.formats.embedding import SIDE_FILE
from conversion.repos.tensor_files import TensorFiles
from conversion.shards import Shard, ShardLayout
from conversion.source.int4_grid import NonFinite
from conversion.source.rounded_grid import recover_scales
from conversion.tensor_spec import DTYPES, TensorSpec

BLOCK_WEIGHTS = 1 << 22


class OffGrid(Exception):
    """Some group is no rounded product of codes and a scale of the dtype that was tried."""


def write_side_file(repo: Path, workers: int, report: Callable[[str], None]) -> tuple[str, ScaleFacts] | None:
    """Writes the side file of a repo, if its embedding lies on the grid.

    Args:
        repo: folder with all its files of weights; an index is not needed.
        workers: blocks of rows looked at at a time.
        report: takes a line that says what was found.

    Returns:
        Dtype and facts of its scales; None if there is no side file, because a group lies on no grid.
    """
    files = TensorFiles(repo)
    name = next(name for name in files.names() if name.endswith("embed_tokens.weight"))
    rows, columns = files.shape(name)
    if columns % GROUP_SIZE:
        report(f"embedding: {columns} columns are no groups of {GROUP_SIZE}; it stays plain")
        return None
    for dtype in ("bfloat16", "float16", "float32"):
        try:
            scales = _recovered(files, name, dtype, workers)
        except OffGrid as error:
            why = str(error)
            continue
        _write(repo, name.replace(".weight", ".scales"), scales, dtype)
        report(
            f"embedding: codes and {dtype} scales found again; their products, rounded to "
            f"{files.dtype(name)}, are the stored weights in all of {rows * columns} elements"
        )
        facts = ScaleFacts()
        for start in range(0, rows, max(1, BLOCK_WEIGHTS // columns)):
            facts.add(scales[start : start + max(1, BLOCK_WEIGHTS // columns)].astype(np.float32))
        return dtype, facts
    report(f"embedding: {why}; it stays plain")
    return None


def _recovered(files: TensorFiles, name: str, dtype: str, workers: int) -> np.ndarray:
    """All scales, [rows, columns/32].

    Raises:
        OffGrid: a group has none.
    """
    rows, columns = files.shape(name)
    scales = np.empty((rows, columns // GROUP_SIZE), DTYPES[dtype][1])
    step = max(1, BLOCK_WEIGHTS // columns)

    def recover_block(start: int) -> None:
        stop = min(start + step, rows)
        try:
            found = recover_scales(files.read(name, start, stop), dtype)
        except NonFinite as error:
            raise OffGrid(str(error)) from error
        if found.lost:
            groups = found.scales.size
            raise OffGrid(f"{found.lost} of {groups} groups in rows {start} to {stop - 1} lie on no int4 grid")
        scales[start:stop] = found.scales

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(recover_block, start) for start in range(0, rows, step)]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return scales


def _write(repo: Path, name: str, scales: np.ndarray, dtype: str) -> None:
    layout = ShardLayout(SIDE_FILE, (TensorSpec(name, dtype, scales.shape),))
    waiting = repo.with_name("waiting")
    shard = Shard(layout, repo / SIDE_FILE, waiting)
    shard.write(name, scales)
    shard.finish(dtype)
    shard.close()
    waiting.unlink()
