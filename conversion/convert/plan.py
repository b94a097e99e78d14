"""What a conversion will do, known from metadata alone.

`make_plan`: source + options -> `Plan`: parts, where each comes from, and the shards they fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import Gemma3Config, Gemma3TextConfig

from conversion.arguments import check_config, check_donor, check_tokenizer
from conversion.codes import GROUP_SIZE
from conversion.convert.adoption import why_not_adopted
from conversion.errors import BadInput
from conversion.folders.places import check_apart
from conversion.formats.embedding import SIDE_FILE
from conversion.identify import HUB, PREFIX
from conversion.layout import output_tensors
from conversion.name_map import LINEAR, both_layouts
from conversion.options import Options
from conversion.part import Part
from conversion.shards import ShardLayout, split_into_shards
from conversion.sizes import Size, read_config
from conversion.small_files.repo_files import TokenizerFiles, find_tokenizer
from conversion.source.donor import Donor
from conversion.source.opening import open_source
from conversion.source.source import Source
from conversion.tensor_spec import SCALES, TensorSpec

NO_TOKENIZER = (
    "no tokenizer was found, the repo is incomplete: the checkpoint's folder and the two above it hold no "
    "tokenizer.model; --tokenizer takes one, or a folder with tokenizer.json"
)


@dataclass(frozen=True)
class Plan:
    """All that is known before the first weight is read.

    Attributes:
        source: what is converted.
        size: the published size it is of, None if the user gave a configuration.
        config: configuration of the model.
        parts: all that is converted, in order.
        donated: names of the parts that the source lacks and `donor` provides.
        donor: where those come from.
        shards: files to be written.
        shard_of: name of a part -> index of its shard.
        side: file for the scales of an int4 embedding that is written as floats, None if there is none.
        adopted: whether the source's own files of weights become the repo's; then there are no `shards`.
        tokenizer: where its files come from, None if there is none.
        variant: `it` (chat) or `pt` (completion).
        notes: what the user should know of the source.
    """

    source: Source
    size: Size | None
    config: Gemma3Config | Gemma3TextConfig
    parts: list[Part]
    donated: frozenset[str]
    donor: Donor | None
    shards: list[ShardLayout]
    shard_of: dict[str, int]
    side: ShardLayout | None
    adopted: bool
    tokenizer: TokenizerFiles | None
    variant: str
    notes: tuple[str, ...]

    @property
    def text_config(self) -> Gemma3TextConfig:
        return self.config.get_text_config()

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read from the source."""
        return sum(self.source.nbytes(part) for part in self.parts if part.leaf not in self.donated)

    @property
    def work_bytes(self) -> int:
        """Disk space that the conversion may need at most, waiting scales included."""
        scales = sum(spec.nbytes() for shard in self.shards for spec in shard.tensors if spec.dtype == "scales")
        side = self.text_config.vocab_size * self.text_config.hidden_size // GROUP_SIZE * 4
        small_files = 100 << 20
        files = sum(self.source.files.sizes().values()) if self.adopted else 0  # if they cannot be linked
        return sum(shard.nbytes() for shard in self.shards) + files + scales + 2 * side + small_files

    @property
    def kept(self) -> list[str]:
        """Names of linears of the language model that are floats, in both key layouts."""
        plain = [part.tensors[0] for part in self.parts if part.kind == "plain"]
        stems = [name.removesuffix(".weight") for name in plain if LINEAR.fullmatch(name)]
        return [name for stem in stems for name in both_layouts(stem)]


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
    given = str(checkpoint).lower()
    if given.startswith(PREFIX):
        from conversion.source.kaggle import get_cache_folder  # only those who download need kagglehub

        checkpoint = Path(get_cache_folder())
    elif given.startswith(HUB):
        from conversion.source.hub import cache_folder

        checkpoint = cache_folder()
    donor = Path(options.donor) if options.donor and Path(options.donor).is_dir() else None
    check_apart(
        options.output,
        {"--checkpoint": checkpoint, "--donor": donor},
        {"--tokenizer": options.tokenizer, "--config": options.config, "--source-hashes": options.source_hashes},
    )


def make_plan(options: Options) -> Plan:
    """Reads metadata only.

    Raises:
        BadInput: no source, unknown size, parts that do not fit.
    """
    check_options(options)
    source = open_source(options.checkpoint, options.mmproj)
    donor = Donor(options.donor) if options.donor else None
    found = source.contents(options, donor.holds if donor else None)
    text = found.config.get_text_config()
    adopted = why_not_adopted(source, found, options) is None
    groups = [output_tensors(part, options.dtype, options.embedding, text.vocab_size) for part in found.parts]
    shards = [] if adopted else split_into_shards(groups, options.shard_size)
    shard_of_tensor = {spec.name: i for i, shard in enumerate(shards) for spec in shard.tensors}
    firsts = {part.leaf: specs[0].name for part, specs in zip(found.parts, groups, strict=True)}
    shard_of = {} if adopted else {leaf: shard_of_tensor[name] for leaf, name in firsts.items()}
    return Plan(
        source,
        found.size,
        found.config,
        found.parts,
        found.donated,
        donor,
        shards,
        shard_of,
        _side_file(found.parts, text) if options.embedding == "plain" else None,
        adopted,
        found.tokenizer,
        found.variant,
        found.notes,
    )


def _side_file(parts: list[Part], text: Gemma3TextConfig) -> ShardLayout | None:
    stem = next((part.tensors[0].removesuffix("weight") for part in parts if part.kind == "embedding"), None)
    shape = (text.vocab_size, text.hidden_size // GROUP_SIZE)
    return stem and ShardLayout(SIDE_FILE, (TensorSpec(f"{stem}scales", SCALES, shape),))


def describe(plan: Plan, options: Options) -> str:
    """What `convert_flax.py plan` prints."""
    kinds = {"int4 matrices": 0, "int4 embedding": 0, "plain tensors": 0}
    for part in plan.parts:
        kind = {"linear": "int4 matrices", "embedding": "int4 embedding", "plain": "plain tensors"}[part.kind]
        kinds[kind] += len(part.tensors)
    read = len(plan.parts) - len(plan.donated)
    lines = [
        f"checkpoint  {plan.source.path}",
        f"size        {plan.size.name if plan.size else 'as configured'}, {plan.config.model_type}, {plan.variant}",
        f"source      {read} {plan.source.unit}, {plan.source_bytes / 1e9:.2f} GB of {plan.source.stored_as}",
        f"becomes     {', '.join(f'{count} {kind}' for kind, count in kinds.items())}",
    ]
    lines.append(f"tokenizer   {plan.tokenizer or NO_TOKENIZER}")
    lines += [f"note        {note}" for note in plan.notes]
    if plan.donated:
        lines.append(f"from donor  {', '.join(sorted(plan.donated))}")
    if plan.adopted:
        lines.append("shards      the source's own files, linked, or copied where the output is on another disk")
    for shard in plan.shards:
        low, high = shard.nbytes("bfloat16") / 1e9, shard.nbytes("float32") / 1e9
        lines.append(f"shard       {shard.filename}  {low:.2f} GB ({high:.2f} GB if the scales need float32)")
    lines += [
        f"disk        {plan.work_bytes / 1e9:.2f} GB free space needed in {options.output or 'the output folder'}",
        f"memory      about {1 + 0.3 * options.workers:.1f} GB with {options.workers} workers",
        f"time        about {_duration(plan)} on two cores and a disk that keeps up",
    ]
    return "\n".join(lines)


def _duration(plan: Plan) -> str:
    seconds = plan.source_bytes / plan.source.bytes_per_second
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
