"""A repo against the AWQ repo that it was made from: codes, scales, and what is neither."""

from __future__ import annotations

from collections.abc import Callable

from conversion.codes import dequantize
from conversion.errors import BadInput
from conversion.proof.tally import check_differences
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import StoredRepo


def compare_repos(repo: StoredRepo, source: AwqRepo, report: Callable[[str], None]) -> None:
    """Compares every tensor.

    Raises:
        BadInput: anything differs, or it was made from another repo.
    """
    if [_short(name) for name in sorted(repo.linears)] != [_short(name) for name in sorted(source.linears)]:
        raise BadInput(f"{repo.path}: has other layers than {source.path}, so it was not made from it")
    differences = [line for name in source.linears if (line := _linear_differs(repo, source, name))]
    if not _same_embedding(repo, source):
        differences.append(f"{source.embedding}: rows, codes or scales differ")
    differences += [f"{name}: values differ" for name in source.plain if not repo.plain_equals(name, source.read(name))]
    check_differences(repo.path, source.path, differences)
    report(f"int4 matrices: {len(source.linears)}, every code and scale equal; {len(source.plain)} other tensors equal")
    report(f"verified: {repo.path} holds what {source.path} holds")


def _linear_differs(repo: StoredRepo, source: AwqRepo, name: str) -> str | None:
    (codes, scales), (expected, of_source) = repo.linear(name), source.linear(name)
    if codes.shape != expected.shape or not (codes == expected).all():
        return f"{name}: codes differ"
    return None if (of_source.astype(scales.dtype) == scales).all() else f"{name}: scales differ"


def _same_embedding(repo: StoredRepo, source: AwqRepo) -> bool:
    if not source.has_codes:
        return _same_floats(repo, source)
    start = 0
    for codes, scales in source.embedding_blocks(min(repo.rows, source.rows)):
        found, found_scales, weight = repo.embedding_rows(start, start + len(codes))
        start += len(codes)
        if found is not None and not (
            (found == codes).all() and (scales.astype(found_scales.dtype) == found_scales).all()
        ):
            return False
        if weight is not None and not (weight == dequantize(codes, scales).astype(weight.dtype)).all():
            return False
    return repo.cuts_embedding or repo.rows == source.rows


def _same_floats(repo: StoredRepo, source: AwqRepo) -> bool:
    """Whether an embedding that lies on no grid is the source's, rounded to its dtype here."""
    start = 0
    for rows in source.embedding_weights(min(repo.rows, source.rows)):
        codes, _, weight = repo.embedding_rows(start, start + len(rows))
        start += len(rows)
        if codes is not None or weight is None or not (weight == rows.astype(weight.dtype)).all():
            return False
    return repo.cuts_embedding or repo.rows == source.rows


def _short(name: str) -> str:
    """A linear's name, the same whether the repo sees or not."""
    return name.removeprefix("language_model.")
