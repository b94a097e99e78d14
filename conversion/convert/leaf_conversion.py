"""The parts of a plan become tensors in shards, several at a time, and are noted shard by shard.

This is where a source meets the writer: a part is read (`source/source.py`) and written (`leaf_writer.py`) block by
block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from conversion.codes import CodeBlock
from conversion.convert.leaf_writer import LeafWriter
from conversion.convert.plan import Plan
from conversion.facts import LeafFacts
from conversion.folders.work_folder import WorkFolder
from conversion.options import Options
from conversion.part import Part
from conversion.shards import Shard, ShardLayout
from conversion.source.leaf_codes import non_finite
from conversion.source.source import FloatBlock

B = TypeVar("B", CodeBlock, FloatBlock)


class Cancelled(Exception):
    """Another part failed; this one was given up."""


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
        self._todo = [part for part in plan.parts if part.leaf not in self._facts]
        self._unfinished = {
            i: sum(plan.shard_of[part.leaf] == i for part in self._todo) for i in noted if noted[i] is None
        }
        self._cancelled, self._lock = threading.Event(), threading.Lock()

    def run(self, beside: Callable[[], None]) -> list[LeafFacts]:
        """Converts what is to be done, and does other work `beside` it.

        Returns:
            Facts of every part, in the order of the plan.

        Raises:
            BadInput, SourceLost, OSError: the first error of a part, or of the other work.
        """
        with ExitStack() as stack:
            self._open_files(stack)
            pool = stack.enter_context(ThreadPoolExecutor(self._options.workers))
            try:
                futures = [pool.submit(beside), *(pool.submit(self._convert, part) for part in self._todo)]
                errors = _errors(futures)
            finally:  # an error or Ctrl-C: parts under way stop at their next block
                self._cancelled.set()
                pool.shutdown(cancel_futures=True)
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return [self._facts[part.leaf] for part in self._plan.parts]

    def _open_files(self, stack: ExitStack) -> None:
        plan = self._plan

        def opened(shard: ShardLayout) -> Shard:
            file = self._work.open_shard(shard)
            stack.callback(file.close)
            return file

        self._shards = {i: opened(plan.shards[i]) for i in self._unfinished}
        self._side = opened(plan.side) if plan.side else None
        read = sum(plan.source.nbytes(part) for part in self._todo if part.leaf not in plan.donated)
        bar = tqdm(total=read, unit="B", unit_scale=True, desc="converting", mininterval=0.5, disable=None)
        self._bar = stack.enter_context(bar)

    def _convert(self, part: Part) -> None:
        plan, number = self._plan, self._plan.shard_of[part.leaf]
        writer = LeafWriter(self._shards[number], self._options.dtype, plan.text_config.vocab_size, self._side)
        facts = LeafFacts.of(part)
        if part.int4:
            blocks = plan.source.codes(part)
            facts.scales = writer.write_codes(part, self._counted(part, blocks, facts))
            plan.source.judge(facts, self._options.tolerance)
        else:
            rounded = writer.write_plain(part, self._floats(part))
            if plan.source.counts_rounding:
                facts.values, facts.rounded = part.size, rounded
        self._note(facts, number)

    def _floats(self, part: Part) -> Iterator[FloatBlock]:
        """The values of a part that is no codes.

        Raises:
            BadInput: a value is not finite.
        """
        plan = self._plan
        if part.leaf in plan.donated:
            tensors = [plan.donor.read(name, part.tensor_shape) for name in part.tensors]
            blocks = [FloatBlock(number, 0, tensor) for number, tensor in enumerate(tensors)]
        else:
            blocks = self._told(part, plan.source.values(part))
        for block in blocks:
            finite = np.isfinite(block.values)
            if not finite.all():
                place = tuple(int(i) for i in np.argwhere(~finite)[0])
                value, row = float(block.values[place]), (block.row + place[0], *place[1:])
                raise non_finite(f"{part.leaf} ({part.tensors[block.tensor]})", row, value)
            yield block

    def _counted(self, part: Part, blocks: Iterator[CodeBlock], facts: LeafFacts) -> Iterator[CodeBlock]:
        for block in self._told(part, blocks):
            facts.add(block)
            yield block

    def _told(self, part: Part, blocks: Iterator[B]) -> Iterator[B]:
        """The blocks of a part, each counted when the next is asked for."""
        total, done = self._plan.source.nbytes(part), 0
        for block in blocks:
            before = done * total // part.size
            done += (block.codes if part.int4 else block.values).size
            yield block
            self._tell(done * total // part.size - before)

    def _tell(self, nbytes: int) -> None:
        """Counts stored bytes that are done.

        Raises:
            Cancelled: there is no more use in the rest.
        """
        if self._cancelled.is_set():
            raise Cancelled
        with self._lock:
            self._bar.update(nbytes)

    def _note(self, facts: LeafFacts, number: int) -> None:
        """Notes a part that is written, and its shard if it was the last one."""
        with self._lock:
            self._facts[facts.leaf] = facts
            self._unfinished[number] -= 1
            complete = self._unfinished[number] == 0
        if complete:
            if self._side:
                self._side.sync()
            self._shards[number].sync()
            parts = (part for part in self._plan.parts if self._plan.shard_of[part.leaf] == number)
            noted = [self._facts[part.leaf].to_dict() for part in parts]
            self._work.mark_complete(self._plan.shards[number].filename, noted)


def _errors(futures: list[Future]) -> list[BaseException]:
    """Waits until all is done, or something failed."""
    finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
    return [error for future in finished if (error := future.exception())]
