"""An AWQ repo on our grid becomes ours without its weights being written anew: its files are linked, or copied.

All that a conversion would find out is found out here too: zero points, scales, and values that are not finite.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput
from conversion.facts import LeafFacts, ScaleFacts
from conversion.options import SHARD_BYTES, Options
from conversion.part import Part
from conversion.source.hub_source import HubSource
from conversion.source.source import Contents, Source


def why_not_adopted(source: Source, contents: Contents, options: Options) -> str | None:
    """Why the files of a source cannot be those of the repo; None: they can."""
    if not isinstance(source, HubSource) or source.kind != "awq":
        return "it is no AWQ repo"
    asked = {
        "--config": options.config,
        "--donor": contents.donated,
        "--embedding int4": options.embedding == "int4",
        "--shard-size": options.shard_size != SHARD_BYTES,
        "--text-only": options.text_only,
    }
    if given := [name for name, value in asked.items() if value]:
        return f"{given[0]} asks for other files"
    linears = [source.linear(part) for part in contents.parts if part.int4]
    if other := sorted({linear.group_size for linear in linears} - {GROUP_SIZE}):
        return f"it has groups of {other[0]}"
    dtypes = sorted({linear.scale_dtype for linear in linears})
    if len(dtypes) > 1 or options.scale_dtype not in ("auto", dtypes[0]):
        return f"its scales are {' and '.join(dtypes)}"
    plain = sorted({source.tensors.dtype(part.leaf).name for part in contents.parts if not part.int4})
    if plain != [options.dtype]:
        return f"its other tensors are {' and '.join(plain)}, and --dtype is {options.dtype}"
    embedding = next(part for part in contents.parts if part.is_embedding)
    if embedding.tensor_shape[0] != contents.config.get_text_config().vocab_size:
        return "its embedding lacks rows"
    known = {name for linear in linears for name in linear.tensors}
    if set(source.tensors.names()) - known - {part.leaf for part in contents.parts}:
        return "it holds the head apart from the embedding"
    return None


class Adoption:
    """Step 1 of a conversion, where files are taken over as they are.

    Args:
        options: what the user chose.
        source: the repo.
        parts: all that it holds.
        folder: where its files go.
    """

    def __init__(self, options: Options, source: HubSource, parts: list[Part], folder: Path):
        self._options, self._source, self._parts, self._folder = options, source, parts, folder

    def run(self, beside: Callable[[], None]) -> list[LeafFacts]:
        """Takes over the files, looks at what they hold, and does other work beside it.

        Returns:
            Facts of every part, in order.

        Raises:
            BadInput: it is asymmetric, or a value is not finite.
        """
        with ThreadPoolExecutor(self._options.workers) as pool:
            try:
                work = [pool.submit(beside), *(pool.submit(self._take, path) for path in self._source.tensors.paths)]
                facts = [pool.submit(self._examined, part) for part in self._parts]
                for future in work:
                    future.result()
                return [future.result() for future in facts]
            finally:
                pool.shutdown(cancel_futures=True)

    def _take(self, path: Path) -> None:
        """Links a file, or copies it where that is not possible."""
        target = self._folder / path.name
        target.unlink(missing_ok=True)  # of an earlier run that was killed, perhaps while copying
        try:
            os.link(path.resolve(), target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, target)

    def _examined(self, part: Part) -> LeafFacts:
        facts = LeafFacts.of(part)
        if part.int4:
            linear = self._source.linear(part)
            linear.check()
            scales = linear.all_scales()
            self._check_finite(f"{part.leaf}.{linear.scales}", scales)
            facts.groups, facts.scales = scales.size, ScaleFacts()
            facts.scales.add(scales)
        else:
            for block in self._source.values(part):
                self._check_finite(part.leaf, block.values)
        return facts

    def _check_finite(self, name: str, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            wrong = np.count_nonzero(~np.isfinite(values))
            raise BadInput(f"{self._source.path}: {wrong} values of {name} are not finite; download the repo again")
