"""`conversion.json`: what was converted with which options, how exact it is, and the SHA-256 of every file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from conversion.convert.plan import Plan
from conversion.facts import LeafFacts, ScaleFacts
from conversion.options import Options
from conversion.proof.manifest import MANIFEST
from conversion.shards import sha256
from conversion.source.source import Source

LIBRARIES = ("numpy", "transformers")


def versions(source: Source) -> dict[str, str]:
    """Of the libraries that have a say in what is written."""
    return {name: version(name) for name in (*LIBRARIES, *source.libraries)}


def manifest(
    options: Options, plan: Plan, facts: list[LeafFacts], scales: dict[str, dict | None], files: dict[str, str]
) -> dict:
    """The manifest of a finished repo.

    Args:
        options: what the user chose.
        plan: what was converted.
        facts: of every part.
        scales: `scales` and `embedding_scales` -> what `scale_summary` says, or None.
        files: name -> SHA-256.
    """
    return {
        "source": {
            "kind": plan.source.kind,
            "notes": list(plan.notes),
            "fingerprint": plan.source.files.fingerprint(),
            "files": plan.source.files.sizes(),
            "donor": {"from": options.donor, "leaves": sorted(plan.donated)} if plan.donated else None,
        },
        "size": plan.size and plan.size.name,
        "options": options.that_shape_the_output() | {"variant": plan.variant},
        **scales,
        "versions": versions(plan.source),
        "leaves": [leaf.to_dict() for leaf in facts],
        "files": files,
    }


def scale_summary(scales: ScaleFacts, dtype: str) -> dict:
    """What storing these scales in a dtype does to them."""
    return {
        "dtype": dtype,
        "count": scales.count,
        "inexact": scales.inexact[dtype],
        "worst_relative_error": scales.worst_relative[dtype],
        "smallest": scales.smallest,
        "largest": scales.largest,
    }


def hashes(repo: Path, workers: int) -> dict[str, str]:
    """SHA-256 of every file but the manifest itself."""
    names = sorted(path.name for path in repo.iterdir() if path.name != MANIFEST)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(repo / name), names), strict=True))


def report_findings(facts: list[LeafFacts], manifest: dict, report: Callable[[str], None]) -> None:
    """Tells what the user should know of it, a line each."""
    for note in manifest["source"]["notes"]:
        report(note)
    for key, what in ("scales", "scales of the shards"), ("embedding_scales", "scales of the embedding"):
        if summary := manifest[key]:
            report(
                f"{what}: {summary['dtype']}, {summary['inexact']} of {summary['count']} rounded, "
                f"worst relative error {summary['worst_relative_error']:.3g}"
            )
    for leaf in facts:
        if leaf.inexact:
            report(
                f"{leaf.leaf}: {leaf.inexact} of {leaf.groups} groups are inexact, worst deviation {leaf.worst:.3g} of "
                f"the group's largest weight"
            )
    counted = [leaf for leaf in facts if leaf.rounded is not None]
    for name, leaves in (
        ("embedding", [leaf for leaf in counted if leaf.is_embedding]),
        ("other tensors", [leaf for leaf in counted if not leaf.is_embedding]),
    ):
        if leaves:
            rounded, values = sum(leaf.rounded for leaf in leaves), sum(leaf.values for leaf in leaves)
            report(f"{name}: {rounded} of {values} values rounded to {manifest['options']['dtype']}")
    if donor := manifest["source"]["donor"]:
        report(f"from {donor['from']}: {', '.join(donor['leaves'])}")
