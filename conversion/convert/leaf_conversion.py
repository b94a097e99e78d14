"""The leaves of a plan become tensors in shards, several at a time, and are noted shard by shard.

This is where a source meets the writer: a leaf is read and recovered (`source/leaf_codes.py`) and written
(`leaf_writer.py`) block by block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import numpy as np
from tqdm import tqdm

from conversion.codes import CodeBlock
from conversion.convert.leaf_writer import LeafWriter
from conversion.convert.plan import Plan
from conversion.facts import LeafFacts
from conversion.folders.work_folder import WorkFolder
from conversion.layout import kind_of
from conversion.name_map import Entry
from conversion.options import Options
from conversion.shards import Shard, ShardLayout
from conversion.source.leaf_codes import code_blocks, non_finite


class Cancelled(Exception):
    """Another leaf failed; this one was given up."""


class LeafConversion:
    """Step 1 of a conversion. Shards that an earlier run completed are not touched.

    Args:
        options: what the user chose.
        plan: what is converted.
        work: where to, already started.
    """

    def __init__(self, options: Options, plan: Plan, work: WorkFolder):
        self._options, self._plan, self._work = options, plan, work
        noted = {i: work.shard_facts(shard.filename) for i, shard in enumerate(plan.shards)}
        self._facts = {leaf.leaf: leaf for leaves in noted.values() for leaf in map(LeafFacts.from_dict, leaves or [])}
        self._todo = [entry for entry in plan.entries if entry.leaf not in self._facts]
        self._unfinished = {
            i: sum(plan.shard_of[entry.leaf] == i for entry in self._todo) for i in noted if noted[i] is None
        }
        self._cancelled, self._lock = threading.Event(), threading.Lock()

    def run(self, beside: Callable[[], None]) -> list[LeafFacts]:
        """Converts what is to be done, and does other work `beside` it.

        Returns:
            Facts of every leaf, in the order of the plan.

        Raises:
            BadInput, SourceLost, OSError: the first error of a leaf, or of the other work.
        """
        with ExitStack() as stack:
            self._open_files(stack)
            pool = stack.enter_context(ThreadPoolExecutor(self._options.workers))
            try:
                futures = [pool.submit(beside), *(pool.submit(self._convert, entry) for entry in self._todo)]
                errors = _errors(futures)
            finally:  # an error or Ctrl-C: leaves under way stop at their next block
                self._cancelled.set()
                pool.shutdown(cancel_futures=True)
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return [self._facts[entry.leaf] for entry in self._plan.entries]

    def _open_files(self, stack: ExitStack) -> None:
        plan = self._plan

        def opened(shard: ShardLayout) -> Shard:
            file = self._work.open_shard(shard)
            stack.callback(file.close)
            return file

        self._shards = {i: opened(plan.shards[i]) for i in self._unfinished}
        self._side = opened(plan.side) if plan.side else None
        read = sum(plan.checkpoint.leaves[e.leaf].nbytes for e in self._todo if e.leaf not in plan.donated)
        bar = tqdm(total=read, unit="B", unit_scale=True, desc="converting", mininterval=0.5, disable=None)
        self._bar = stack.enter_context(bar)

    def _convert(self, entry: Entry) -> None:
        plan, number = self._plan, self._plan.shard_of[entry.leaf]
        writer = LeafWriter(self._shards[number], self._options.dtype, plan.text_config.vocab_size, self._side)
        facts = LeafFacts.of(entry)
        if kind_of(entry) == "plain":
            writer.write_plain(entry, self._floats(entry))
        else:
            blocks = code_blocks(entry, plan.checkpoint.leaves[entry.leaf], facts, self._options.tolerance)
            facts.scales = writer.write_codes(entry, self._told(blocks))
        self._note(facts, number)

    def _floats(self, entry: Entry) -> list[np.ndarray]:
        """The tensors of a leaf off the grid, as float32.

        Raises:
            BadInput: a value is not finite.
        """
        plan = self._plan
        if entry.leaf in plan.donated:
            tensors = [plan.donor.read(name, entry.tensor_shape) for name in entry.tensors]
        else:
            leaf = plan.checkpoint.leaves[entry.leaf]
            tensors = entry.rule.axes.to_tensors(leaf.read())
            self._tell(leaf.nbytes)
        for name, tensor in zip(entry.tensors, tensors, strict=True):
            finite = np.isfinite(tensor)
            if not finite.all():
                place = tuple(int(i) for i in np.argwhere(~finite)[0])
                raise non_finite(f"{entry.leaf} ({name})", place, float(tensor[place]))
        return tensors

    def _told(self, blocks: Iterator[CodeBlock]) -> Iterator[CodeBlock]:
        for block in blocks:
            yield block
            self._tell(block.codes.size * np.dtype(np.float32).itemsize)

    def _tell(self, nbytes: int) -> None:
        """Counts decoded bytes that are done.

        Raises:
            Cancelled: there is no more use in the rest.
        """
        if self._cancelled.is_set():
            raise Cancelled
        with self._lock:
            self._bar.update(nbytes)

    def _note(self, facts: LeafFacts, number: int) -> None:
        """Notes a leaf that is written, and its shard if it was the last one."""
        with self._lock:
            self._facts[facts.leaf] = facts
            self._unfinished[number] -= 1
            complete = self._unfinished[number] == 0
        if complete:
            if self._side:
                self._side.sync()
            self._shards[number].sync()
            entries = (entry for entry in self._plan.entries if self._plan.shard_of[entry.leaf] == number)
            noted = [self._facts[entry.leaf].to_dict() for entry in entries]
            self._work.mark_complete(self._plan.shards[number].filename, noted)


def _errors(futures: list[Future]) -> list[BaseException]:
    """Waits until all is done, or something failed."""
    finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
    return [error for future in finished if (error := future.exception())]
