"""What a conversion can be asked for: the options, and the values that they take. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conversion.errors import BadInput

DTYPES = ("bfloat16", "float32")
EMBEDDINGS = ("plain", "int4")
SCALE_DTYPES = ("auto", "bfloat16", "float16", "float32")
VARIANTS = ("it", "pt")
FORMATS = ("compressed-tensors", "gguf", "mlx")  # that a repo in AWQ format is exported to
GGUF_EMBEDDINGS = ("q4_0", "f16")
SHARD_BYTES = 2_000_000_000  # small enough that a kill costs little work, and that hashes are taken side by side
NO_FLOAT16 = "Gemma 3 overflows float16"


@dataclass(frozen=True)
class Options:
    """What the user chose; `convert_flax.py convert --help` describes each."""

    checkpoint: Path
    output: Path
    config: Path | None = None
    variant: str | None = None
    tokenizer: Path | None = None
    dtype: str = "bfloat16"
    scale_dtype: str = "auto"
    embedding: str = "plain"
    tolerance: float | None = None
    text_only: bool = False
    donor: str | None = None
    source_hashes: Path | None = None
    mmproj: Path | None = None
    verify: bool = False
    shard_size: int = SHARD_BYTES
    workers: int = 2

    def that_shape_the_output(self) -> dict:
        """The options that must be the same for a conversion to be resumed; kept in the manifest."""
        names = ("variant", "dtype", "scale_dtype", "embedding", "tolerance", "text_only", "donor", "shard_size")
        return {name: getattr(self, name) for name in names}

    def check_values(self) -> None:
        """Raises BadInput for a value that its option does not take; the command line's parser knows the same."""
        for name, value, choices in (
            ("--dtype", self.dtype, DTYPES),
            ("--scale-dtype", self.scale_dtype, SCALE_DTYPES),
            ("--embedding", self.embedding, EMBEDDINGS),
            ("--variant", self.variant or VARIANTS[0], VARIANTS),
        ):
            if value not in choices:
                reason = f"{NO_FLOAT16}; " if (name, value) == ("--dtype", "float16") else ""
                raise BadInput(f"{name} {value}: {reason}choose {' or '.join(choices)}")
        if self.workers < 1:
            raise BadInput(f"--workers {self.workers}: give 1 or more")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise BadInput(f"--tolerance {self.tolerance}: give a number from 0 to below 1")
