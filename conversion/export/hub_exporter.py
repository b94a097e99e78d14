"""A converted repo in another format of Hugging Face repos: shards, index, settings and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversion.formats import HubFormat
from conversion.name_map import both_layouts
from conversion.repos.awq_repo import AwqRepo
from conversion.shards import INDEX, Shard, split_into_shards
from conversion.small_files.repo_files import TOKENIZER_FILES, write_json
from conversion.tensor_spec import DTYPES, TensorSpec

DTYPE_NAMES = {dtype: name for name, (_, dtype) in DTYPES.items()}


@dataclass(frozen=True)
class HubExporter:
    """Writes linears in a format, the embedding too where it takes that, else as floats; all else stays as it is."""

    format: HubFormat

    def write(self, repo: AwqRepo, folder: Path) -> list[str]:
        """Writes all that the format's loaders need.

        Args:
            repo: the converted repo.
            folder: an empty one.

        Returns:
            Lines for the user: none, since nothing is rounded.
        """
        layouts = split_into_shards(self._specs(repo))
        place = {spec.name: layout.filename for layout in layouts for spec in layout.tensors}
        waiting = folder.with_name("waiting")
        files = {layout.filename: Shard(layout, folder / layout.filename, waiting) for layout in layouts}
        written = dict.fromkeys(place, 0)
        for name, part in self._values(repo):
            files[place[name]].write(name, part, written[name])
            written[name] += part.size
        for file in files.values():
            file.finish("float32")
            file.close()
        waiting.unlink()
        total = sum(spec.nbytes() for layout in layouts for spec in layout.tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
        write_json(folder / "config.json", self._config(repo))
        for name in ("generation_config.json", *TOKENIZER_FILES):
            if (repo.path / name).is_file():
                shutil.copyfile(repo.path / name, folder / name)
        return []

    def _specs(self, repo: AwqRepo) -> list[list[TensorSpec]]:
        """The tensors, those of one linear together."""
        scale_dtype = DTYPE_NAMES[repo.dtype_of(f"{repo.linears[0]}.scales")]
        shape = (repo.text_config.vocab_size, repo.text_config.hidden_size)
        if stems := self._embedding_stems(repo):
            of_embedding = DTYPE_NAMES[_unclipped(repo.embedding_rows(0, 1)[1]).dtype]
            groups = [self.format.specs(stem, shape, of_embedding) for stem in stems]
        else:
            groups = [[TensorSpec(f"{repo.embedding}.weight", DTYPE_NAMES[repo.dtype], shape)]]
        groups += [self.format.specs(name, repo.linear_shape(name), scale_dtype) for name in repo.linears]
        return groups + [[TensorSpec(name, DTYPE_NAMES[repo.dtype_of(name)], repo.shape(name))] for name in repo.plain]

    def _values(self, repo: AwqRepo) -> Iterator[tuple[str, np.ndarray]]:
        """Names and contents of the tensors; parts of one tensor come in order."""
        stems = self._embedding_stems(repo)
        for codes, scales in repo.embedding_blocks(repo.rows) if stems else ():
            for part, values in self.format.pack(codes, _unclipped(scales)).items():
                for stem in stems:
                    yield f"{stem}.{part}", values
        for rows in () if stems else repo.embedding_weights():
            yield f"{repo.embedding}.weight", rows
        for name in repo.linears:
            for part, values in self.format.pack(*repo.linear(name)).items():
                yield f"{name}.{part}", values
        for name in repo.plain:
            yield name, repo.read(name)

    def _config(self, repo: AwqRepo) -> dict:
        """config.json."""
        kept = {key: value for key, value in repo.values.items() if key != "auto_map"}  # no code of this project's own
        floats = [name for stem in repo.kept for name in both_layouts(stem)]
        return kept | self.format.config(kept, repo.text_config.to_dict(), floats)

    def _embedding_stems(self, repo: AwqRepo) -> tuple[str, ...]:
        return self.format.embedding_stems(repo.embedding) if repo.has_codes else ()


def _unclipped(scales: np.ndarray) -> np.ndarray:
    """Scales of the embedding, float16 ones as float32.

    MLX adds up the layers in their dtype, and what exceeds float16, as Gemma 3's sums do, is clipped there.
    """
    return scales.astype(np.float32) if scales.dtype == np.float16 else scales
