"""All leaves are in their shards: scales get their dtype, and card, index and manifest are added."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from conversion.convert.manifest import hashes, manifest, report_findings, scale_summary
from conversion.convert.plan import Plan
from conversion.convert.scale_dtype import choose_scale_dtype, exact_dtype
from conversion.convert.side_file import write_side_file
from conversion.facts import LeafFacts, ScaleFacts
from conversion.folders.files import write_text
from conversion.folders.work_folder import WorkFolder
from conversion.options import Options
from conversion.proof.manifest import MANIFEST
from conversion.shards import INDEX, ShardLayout
from conversion.small_files.guide import guide
from conversion.small_files.model_card import model_card, precision
from conversion.small_files.provenance import base_model
from conversion.small_files.repo_files import write_json
from conversion.source.hub_source import HubSource


def complete_repo(
    options: Options, plan: Plan, work: WorkFolder, facts: list[LeafFacts], report: Callable[[str], None]
) -> None:
    """Steps 2 and 3 of a conversion, up to publishing.

    Raises:
        BadInput: the scales do not fit the dtype that was asked for.
    """
    dtype, summaries = _complete_shards(options, plan, work, facts)
    if (
        options.embedding == "plain"
        and not plan.side
        and (found := write_side_file(work.repo, options.workers, report))
    ):
        summaries["embedding_scales"] = scale_summary(found[1], found[0])
    kind = plan.source.kind
    card = model_card(
        plan.config,
        plan.size and plan.size.name,
        plan.variant,
        precision(facts, kind),
        kind,
        base_model(plan.source.path),
        guide(plan.config, plan.parts, int4_embedding=_holds_int4_embedding(plan, summaries)),
    )
    write_text(work.repo / "README.md", card)
    write_json(work.repo / INDEX, _adopted_index(plan.source) if plan.adopted else _index(plan.shards, dtype))
    content = manifest(options, plan, facts, summaries, hashes(work.repo, options.workers))
    write_json(work.repo / MANIFEST, content)
    report_findings(facts, content, report)
    if not options.source_hashes:
        report(f"source files: not compared with hashes (--source-hashes); {plan.source.unseen}")


def _holds_int4_embedding(plan: Plan, summaries: dict[str, dict | None]) -> bool:
    """Whether the model computes from the codes of the embedding: they are stored, or have their scales beside them."""
    return bool(summaries["embedding_scales"]) or any(part.is_embedding and part.int4 for part in plan.parts)


def _complete_shards(
    options: Options, plan: Plan, work: WorkFolder, facts: list[LeafFacts]
) -> tuple[str, dict[str, dict | None]]:
    """Appends the scales to every shard, and to the side file.

    Returns:
        The dtype of those in the shards, and the manifest's summaries.
    """
    scales, embedding_scales = ScaleFacts(), ScaleFacts()
    for leaf in facts:
        if leaf.scales:
            (embedding_scales if plan.side and leaf.kind == "embedding" else scales).merge(leaf.scales)
    dtype = plan.source.scale_dtype if plan.adopted else choose_scale_dtype(options.scale_dtype, scales)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda shard: _complete(work, shard, dtype), plan.shards))
    summaries = {"scales": scale_summary(scales, dtype), "embedding_scales": None}
    if plan.side:
        exact = exact_dtype(embedding_scales)
        _complete(work, plan.side, exact)
        summaries["embedding_scales"] = scale_summary(embedding_scales, exact)
    return dtype, summaries


def _complete(work: WorkFolder, layout: ShardLayout, dtype: str) -> None:
    shard = work.open_shard(layout)
    shard.finish(dtype)
    shard.close()


def _adopted_index(source: HubSource) -> dict:
    """The index over files that keep their names of tensors."""
    tensors = source.tensors
    return {
        "metadata": {"total_size": sum(map(tensors.nbytes, tensors.names()))},
        "weight_map": {tensors.stored_names[name]: tensors.place(name) for name in tensors.names()},
    }


def _index(shards: list[ShardLayout], dtype: str) -> dict:
    """model.safetensors.index.json."""
    return {
        "metadata": {"total_size": sum(spec.nbytes(dtype) for shard in shards for spec in shard.tensors)},
        "weight_map": {spec.name: shard.filename for shard in shards for spec in shard.tensors},
    }
