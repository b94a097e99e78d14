"""What a conversion will do, known from metadata alone.

`make_plan`: checkpoint + options -> `Plan`: leaves, where each comes from, and the shards they fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.arguments import check_config, check_donor, check_tokenizer
from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput, shortened
from conversion.folders.places import check_apart
from conversion.formats.embedding import SIDE_FILE
from conversion.layout import check_divisible, output_tensors
from conversion.name_map import Entry, is_language, match_leaves
from conversion.options import Options
from conversion.shards import ShardLayout, split_into_shards
from conversion.sizes import Size, published_config, read_config, recognize
from conversion.small_files.repo_files import find_tokenizer
from conversion.source.donor import Donor
from conversion.source.flax_checkpoint import FlaxCheckpoint
from conversion.tensor_spec import SCALES, TensorSpec

NO_TOKENIZER = (
    "no tokenizer was found, the repo is incomplete: the checkpoint's folder and the two above it hold no "
    "tokenizer.model; --tokenizer takes one, or a folder with tokenizer.json"
)


@dataclass(frozen=True)
class Plan:
    """All that is known before the first weight is read.

    Attributes:
        checkpoint: the source.
        size: the published size it is of, None if the user gave a configuration.
        config: configuration of the model.
        entries: every leaf that is converted, in order.
        donated: names of the leaves that the source lacks and `donor` provides.
        donor: where those come from.
        shards: files to be written.
        shard_of: leaf name -> index of its shard.
        side: file for the scales of an embedding that stays floats, None if it becomes int4.
        tokenizer: where its files come from, None if there is none.
    """

    checkpoint: FlaxCheckpoint
    size: Size | None
    config: Gemma3Config | Gemma3TextConfig
    entries: list[Entry]
    donated: frozenset[str]
    donor: Donor | None
    shards: list[ShardLayout]
    shard_of: dict[str, int]
    side: ShardLayout | None
    tokenizer: Path | None

    @property
    def text_config(self) -> Gemma3TextConfig:
        return self.config.get_text_config()

    @property
    def source_bytes(self) -> int:
        """Decoded bytes that will be read from the checkpoint."""
        leaves = self.checkpoint.leaves
        return sum(leaves[entry.leaf].nbytes for entry in self.entries if entry.leaf not in self.donated)

    @property
    def work_bytes(self) -> int:
        """Disk space that the conversion may need at most, waiting scales included."""
        scales = sum(spec.nbytes() for shard in self.shards for spec in shard.tensors if spec.dtype == "scales")
        side = self.text_config.vocab_size * self.text_config.hidden_size // GROUP_SIZE * 4
        small_files = 100 << 20
        return sum(shard.nbytes() for shard in self.shards) + scales + 2 * side + small_files


def check_options(options: Options) -> None:
    """Raises BadInput for what is wrong before any checkpoint is seen."""
    options.check_values()
    if options.donor:
        check_donor(options.donor)
    if options.config:
        check_config(options.config)
        read_config(options.config)
    if options.tokenizer:
        check_tokenizer(options.tokenizer)
        find_tokenizer(options.tokenizer, options.checkpoint)
    if options.output:
        _check_places(options)
    if options.source_hashes and not options.source_hashes.is_file():
        raise BadInput(f"--source-hashes {options.source_hashes}: no such file")


def _check_places(options: Options) -> None:
    """Raises BadInput if the output lies in what is read, or around it."""
    checkpoint = options.checkpoint
    if str(checkpoint).lower().startswith("kaggle:"):
        from conversion.source.kaggle import get_cache_folder  # only those who download need kagglehub

        checkpoint = Path(get_cache_folder())
    donor = Path(options.donor) if options.donor and Path(options.donor).is_dir() else None
    check_apart(
        options.output,
        {"--checkpoint": checkpoint, "--donor": donor},
        {"--tokenizer": options.tokenizer, "--config": options.config, "--source-hashes": options.source_hashes},
    )


def make_plan(options: Options) -> Plan:
    """Reads metadata only.

    Raises:
        BadInput: no checkpoint, unknown size, leaves that do not fit.
    """
    check_options(options)
    checkpoint = FlaxCheckpoint(options.checkpoint)
    wrong = [f"{name} is {leaf.dtype}" for name, leaf in checkpoint.leaves.items() if leaf.dtype != np.float32]
    if wrong:
        raise BadInput(f"{checkpoint.directory}: expected float32 leaves, found: {shortened(wrong)}")
    shapes = {name: leaf.shape for name, leaf in checkpoint.leaves.items()}
    size = None if options.config else recognize(shapes)
    config = published_config(size, options.variant) if size else read_config(options.config)
    if options.text_only:
        if not isinstance(config, Gemma3Config):
            raise BadInput(f"{checkpoint.directory}: --text-only drops a vision tower, but this model has none")
        config = config.text_config
        shapes = {name: shape for name, shape in shapes.items() if is_language(name)}
    donor = Donor(options.donor) if options.donor else None
    entries, donated = match_leaves(shapes, config, donor.holds if donor else None)
    for entry in entries:
        check_divisible(entry)
    vocabulary = config.get_text_config().vocab_size
    groups = [output_tensors(entry, options.dtype, options.embedding, vocabulary) for entry in entries]
    shards = split_into_shards(groups, options.shard_size)
    shard_of_tensor = {spec.name: i for i, shard in enumerate(shards) for spec in shard.tensors}
    shard_of = {entry.leaf: shard_of_tensor[specs[0].name] for entry, specs in zip(entries, groups, strict=True)}
    side = _side_file(entries, config.get_text_config()) if options.embedding == "plain" else None
    tokenizer = find_tokenizer(options.tokenizer, checkpoint.directory)
    return Plan(checkpoint, size, config, entries, donated, donor, shards, shard_of, side, tokenizer)


def _side_file(entries: list[Entry], text: Gemma3TextConfig) -> ShardLayout:
    stem = next(entry.tensors[0] for entry in entries if entry.is_embedding).removesuffix("weight")
    shape = (text.vocab_size, text.hidden_size // GROUP_SIZE)
    return ShardLayout(SIDE_FILE, (TensorSpec(f"{stem}scales", SCALES, shape),))


def describe(plan: Plan, options: Options) -> str:
    """What `convert_flax.py plan` prints."""
    kinds = {"int4 matrices": 0, "int4 embedding": 0, "plain tensors": 0}
    for entry in plan.entries:
        kind = "int4 embedding" if entry.is_embedding else "int4 matrices" if entry.int4 else "plain tensors"
        kinds[kind] += len(entry.tensors)
    lines = [
        f"checkpoint  {plan.checkpoint.directory}",
        f"size        {plan.size.name if plan.size else 'as configured'}, {plan.config.model_type}, {options.variant}",
        f"source      {len(plan.entries) - len(plan.donated)} leaves, {plan.source_bytes / 1e9:.2f} GB of float32",
        f"becomes     {', '.join(f'{count} {kind}' for kind, count in kinds.items())}",
    ]
    lines.append(f"tokenizer   {plan.tokenizer or NO_TOKENIZER}")
    if plan.donated:
        lines.append(f"from donor  {', '.join(sorted(plan.donated))}")
    for shard in plan.shards:
        low, high = shard.nbytes("bfloat16") / 1e9, shard.nbytes("float32") / 1e9
        lines.append(f"shard       {shard.filename}  {low:.2f} GB ({high:.2f} GB if the scales need float32)")
    lines += [
        f"disk        {plan.work_bytes / 1e9:.2f} GB free space needed in {options.output or 'the output folder'}",
        f"memory      about {1 + 0.3 * options.workers:.1f} GB with {options.workers} workers",
        f"time        about {_minutes(plan.source_bytes)} on two cores and a disk that keeps up",
    ]
    return "\n".join(lines)


def _minutes(nbytes: int) -> str:
    """Rough duration at 400 MB/s of decoded float32, as measured on two cores (benchmarks/RESULTS.md)."""
    seconds = nbytes / 400e6
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
