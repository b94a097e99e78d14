"""Proof of a finished repo, of any format: against its own manifest, and number by number against its source.

* `verify`: all that can be proven, and in one error all that is wrong.
* `check_repo`: hashes, index, names, shapes and dtypes; needs nothing but the repo.
* `prove_repo`: reads every stored tensor back and compares it with the checkpoint.
* `compare_repos`: likewise with the AWQ repo that another format was made from.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import GROUP_SIZE, dequantize
from conversion.errors import BadInput, shortened
from conversion.formats import awq
from conversion.identify import repo_kind
from conversion.layout import block_rows, kind_of, output_tensors, place_of
from conversion.name_map import EMBEDDING_LEAF, Entry, entries, is_language, make_plan
from conversion.repo_check import MANIFEST, Findings, again, check_files, read_manifest
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import StoredRepo, open_repo
from conversion.shards import INDEX
from conversion.source.flax_checkpoint import FlaxCheckpoint, Leaf
from conversion.source.int4_grid import Recovered, recover
from conversion.tensor_spec import DTYPES, SCALES


@dataclass
class Proof:
    """What was compared, by kind of tensor."""

    tensors: dict[str, int] = field(default_factory=lambda: {"linear": 0, "embedding": 0, "plain": 0})
    exact_groups: dict[str, int] = field(default_factory=lambda: {"linear": 0, "embedding": 0})
    rounded_groups: dict[str, int] = field(default_factory=lambda: {"linear": 0, "embedding": 0})
    worst: dict[str, float] = field(default_factory=lambda: {"linear": 0.0, "embedding": 0.0})
    differences: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for kind, name in ("linear", "int4 matrices"), ("embedding", "int4 embedding"):
            exact, rounded = self.exact_groups[kind], self.rounded_groups[kind]
            if not exact + rounded:
                yield f"{name}: {self.tensors[kind]}, stored as floats, each equal to code * scale of its source"
                continue
            line = f"{name}: {self.tensors[kind]}, every code equal; products equal in all of {exact} groups"
            if rounded:
                line += (
                    f" with an exact scale; {rounded} scales are the source's, rounded, worst relative error "
                    f"{self.worst[kind]:.3g}"
                )
            yield line
        yield f"other tensors: {self.tensors['plain']}, each equal to its source, rounded to the dtype of the repo"


def verify(
    path: Path,
    workers: int,
    report: Callable[[str], None],
    *,
    checkpoint: FlaxCheckpoint | None = None,
    against: AwqRepo | None = None,
) -> None:
    """Proves what can be proven of a repo.

    Args:
        path: folder of a repo in any format that this project writes.
        workers: tensors compared at a time.
        report: takes one line per finding.
        checkpoint: the checkpoint that it was made from.
        against: the AWQ repo that it was made from.

    Raises:
        BadInput: a file is damaged, missing or one too many, or a number is not the source's.
    """
    findings, repo = _examine(path, workers)
    if not checkpoint and not against:
        _raise_problems(path, findings)
        _report_files(findings, repo, report)
        report("not compared with a source: --checkpoint DIR or --against AWQ_REPO does that, number by number")
        return
    rewritten, findings.rewritten = findings.rewritten, []
    _raise_problems(path, findings)
    _report_files(findings, repo, report)
    try:
        if checkpoint:
            prove_repo(repo, checkpoint, workers, report)
        if against:
            compare_repos(repo, against, report)
    except BadInput as error:
        if not rewritten:
            raise
        raise BadInput(f"{error}; {again(*rewritten)}") from error
    for name in rewritten:
        if name.endswith(".gguf"):  # holds more than tensors
            raise BadInput(
                f"{path}: the tensors of {name} are its source's, but what it holds beside them, as the tokenizer, is "
                f"not what was written (SHA-256); {again(name)}"
            )
        report(f"note: {name} is not the bytes that were written, but all its tensors are its source's; harmless")


def check_repo(path: Path, workers: int, report: Callable[[str], None]) -> StoredRepo:
    """Checks a repo against its manifest and its configuration.

    Raises:
        BadInput: a hash, a name, a shape or a dtype differs.
    """
    findings, repo = _examine(path, workers)
    _raise_problems(path, findings)
    _report_files(findings, repo, report)
    return repo


def _examine(path: Path, workers: int) -> tuple[Findings, StoredRepo | None]:
    """What files and structure tell; without a repo there is at least one problem."""
    findings = check_files(path, read_manifest(path), workers)
    try:
        repo = open_repo(path)
        findings.problems += _structure(repo) if isinstance(repo, AwqRepo) else repo.problems()
    except BadInput as error:
        if not findings.problems:
            findings.problems.append(str(error))
        return findings, None
    return findings, repo


def _raise_problems(path: Path, findings: Findings) -> None:
    problems = findings.problems + [
        f"{name} is not the file that was written (SHA-256); which of its tensors differ, --checkpoint or --against "
        f"tells; {again(name)}"
        for name in findings.rewritten
    ]
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise BadInput(f"{path}: {count}{shortened(problems)}")


def _report_files(findings: Findings, repo: StoredRepo, report: Callable[[str], None]) -> None:
    for note in findings.notes:
        report(f"note: {note}")
    if findings.equal:
        report(f"files: {findings.equal}, every SHA-256 as in {MANIFEST}")
    report(
        f"format: {repo_kind(repo.path)}, {len(repo.linears)} int4 matrices; names, shapes and dtypes are the model's"
    )


def _structure(repo: AwqRepo) -> list[str]:
    """What differs between the tensors that config.json asks for, the index, and the shards."""
    vocabulary = repo.rows
    dtype = repo.values.get("dtype")
    if dtype not in DTYPES:
        return [f"config.json: dtype is {dtype!r}"]
    expected = {
        spec.name: spec
        for entry in entries(repo.config, vocabulary)
        for spec in output_tensors(entry, dtype, repo.embedding_mode, vocabulary)
    }
    places = repo.places
    scale_dtype = repo.dtype_of(f"{repo.linears[0]}.scales") if f"{repo.linears[0]}.scales" in places else None
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(places))]
    problems += [f"{name} is not part of the model" for name in sorted(set(places) - set(expected))]
    for name in sorted(set(expected) & set(places)):
        spec = expected[name]
        wanted = scale_dtype if spec.dtype == SCALES else DTYPES[spec.dtype][1]
        if (repo.shape(name), repo.dtype_of(name)) != (spec.shape, wanted):
            problems.append(
                f"{name} is {repo.dtype_of(name)} {list(repo.shape(name))}, not {wanted} {list(spec.shape)}"
            )
        elif name.endswith(".qzeros") and (repo.read(name) != awq.ZERO_WORD).any():
            problems.append(f"{name} holds zero points other than 8")
    problems += [f"{INDEX} misplaces {name}" for name in repo.index if places.get(name) != repo.index[name]]
    problems += [f"{INDEX} lacks {name}" for name in places if name not in repo.index]
    return problems


def prove_repo(repo: StoredRepo, checkpoint: FlaxCheckpoint, workers: int, report: Callable[[str], None]) -> None:
    """Compares every stored tensor with the checkpoint.

    * codes: every one is the source's;
    * products: float32(code * stored scale) is the source's float wherever the stored scale is exact; elsewhere the
      stored scale is the source's, rounded;
    * every other tensor: the source's, rounded to the dtype of the repo.

    Raises:
        BadInput: anything differs, or the checkpoint is another one.
    """
    shapes = {name: leaf.shape for name, leaf in checkpoint.leaves.items()}
    if isinstance(repo.config, Gemma3TextConfig):
        shapes = {name: shape for name, shape in shapes.items() if is_language(name)}
    plan, donated = make_plan(shapes, _config_of(repo, shapes), lambda tensors: True)
    source = read_manifest(repo.path).get("source")
    unaccounted = donated - set((source["donor"] or {}).get("leaves", [])) if source else set()
    if unaccounted:
        raise BadInput(f"{checkpoint.directory}: lacks {', '.join(sorted(unaccounted))}: another source")
    proof, lock = Proof(), threading.Lock()

    def one(entry: Entry) -> None:
        leaf = checkpoint.leaves[entry.leaf]
        kind = kind_of(entry)
        prove = {"plain": _prove_plain, "linear": _prove_linears, "embedding": _prove_embedding}[kind]
        prove(repo, entry, leaf, proof, lock)
        with lock:
            proof.tensors[kind] += len(entry.tensors)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one, entry) for entry in plan if entry.leaf not in donated]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    if proof.differences:
        differences = f"{_tensors(len(proof.differences))} from {checkpoint.directory}"
        raise BadInput(f"{repo.path}: {differences}: {shortened(sorted(proof.differences))}")
    for line in proof.lines():
        report(line)
    if donated:
        report(f"from a donor, not in the source: {', '.join(sorted(donated))}")
    report(f"verified: {repo.path} holds what {checkpoint.directory} holds")


def _config_of(repo: StoredRepo, shapes: dict[str, tuple[int, ...]]) -> Gemma3Config | Gemma3TextConfig:
    """The configuration that the leaves are to fit."""
    if not repo.cuts_embedding or EMBEDDING_LEAF not in shapes:
        return repo.config
    config = copy.deepcopy(repo.config)
    config.get_text_config().vocab_size = shapes[EMBEDDING_LEAF][0]
    return config


def _prove_plain(repo: StoredRepo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    for name, tensor in zip(entry.tensors, entry.rule.axes.to_tensors(leaf.read()), strict=True):
        if not repo.plain_equals(name, tensor):
            with lock:
                proof.differences.append(f"{name} is not its source, rounded to the dtype of the repo")


def _prove_linears(repo: StoredRepo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    stored = [repo.linear(name.removesuffix(".weight")) for name in entry.tensors]
    axis = 1 if entry.grouped_by_row else 0
    wrong = set()
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        tensor, ins, outs = place_of(entry, block.lead, block.row, block.values.shape)
        groups = slice(ins.start // GROUP_SIZE, ins.stop // GROUP_SIZE)
        codes, scales = stored[tensor][0][outs, ins], stored[tensor][1][outs, groups]
        if not entry.grouped_by_row:
            codes, scales = codes.T, scales.T
        if not _same(block.values, recover(block.values, axis), codes, scales, axis, "linear", repo, proof, lock):
            wrong.add(entry.tensors[tensor])
    with lock:
        proof.differences += [f"{name}: codes, scales or products differ" for name in sorted(wrong)]


def _prove_embedding(repo: StoredRepo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    fine = True
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        count = min(len(block.values), repo.rows - block.row)
        if count <= 0:
            break
        values = block.values[:count]
        source = recover(values, 1)
        codes, scales, weight = repo.embedding_rows(block.row, block.row + count)
        if codes is not None:
            fine &= _same(values, source, codes, scales, 1, "embedding", repo, proof, lock)
        if weight is not None:
            fine &= _are_products(weight, source.codes, source.scales, repo)
    if repo.rows > leaf.shape[0]:
        codes, _, weight = repo.embedding_rows(leaf.shape[0], repo.rows)
        fine &= (codes is None or not codes.any()) and (weight is None or not weight.any())
    if not fine:
        with lock:
            proof.differences.append(f"{entry.tensors[0]}: rows, codes, scales or products differ")


def _are_products(weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, repo: StoredRepo) -> bool:
    """Whether floats are code * scale, with the scale as it is or rounded as the format may have had it."""
    candidates = (scales.astype(dtype).astype(np.float32) for dtype in repo.embedding_scale_dtypes)
    return any(bool((weight == dequantize(codes, s).astype(weight.dtype)).all()) for s in candidates)


def _rounded(source: np.ndarray, stored: np.ndarray, repo: StoredRepo) -> np.ndarray:
    """Where stored scales are the source's, rounded to their dtype."""
    with np.errstate(over="ignore", under="ignore"):
        equal = source.astype(stored.dtype) == stored
        if repo.through_bfloat16:
            equal |= source.astype(ml_dtypes.bfloat16).astype(stored.dtype) == stored
    return equal


def _same(
    values: np.ndarray,
    source: Recovered,
    codes: np.ndarray,
    scales: np.ndarray,
    axis: int,
    kind: str,
    repo: StoredRepo,
    proof: Proof,
    lock: threading.Lock,
) -> bool:
    """Whether stored codes and scales are those recovered from a block of the source; adds to the proof."""
    exact = scales.astype(np.float32) == source.scales
    products = dequantize(codes, scales.astype(np.float32), axis) == values
    shape = (-1, GROUP_SIZE, products.shape[1]) if axis == 0 else (products.shape[0], -1, GROUP_SIZE)
    equal = products.reshape(shape).all(axis=1 if axis == 0 else 2)
    rounded = _rounded(source.scales, scales, repo)
    with lock:
        proof.exact_groups[kind] += int(np.count_nonzero(exact & equal))
        proof.rounded_groups[kind] += int(np.count_nonzero(~(exact & equal)))
        if not exact.all():
            error = np.abs(scales.astype(np.float64) - source.scales) / source.scales
            proof.worst[kind] = max(proof.worst[kind], float(error.max()))
    # A group that lies on no grid has its least-squares scale, and no product to be equal to.
    unequal = int(np.count_nonzero(exact & ~equal))
    return bool((codes == source.codes).all() and rounded.all() and unequal <= source.inexact)


def compare_repos(repo: StoredRepo, source: AwqRepo, report: Callable[[str], None]) -> None:
    """Compares every tensor of a repo with the AWQ repo that it was made from: codes, scales, and what is neither.

    Raises:
        BadInput: anything differs, or it was made from another repo.
    """
    if [_short(name) for name in sorted(repo.linears)] != [_short(name) for name in sorted(source.linears)]:
        raise BadInput(f"{repo.path}: has other layers than {source.path}, so it was not made from it")
    differences = []
    for name in source.linears:
        (codes, scales), (expected, of_source) = repo.linear(name), source.linear(name)
        if codes.shape != expected.shape or not (codes == expected).all():
            differences.append(f"{name}: codes differ")
        elif not (of_source.astype(scales.dtype) == scales).all():
            differences.append(f"{name}: scales differ")
    if not _same_embedding(repo, source):
        differences.append(f"{source.embedding}: rows, codes or scales differ")
    differences += [f"{name}: values differ" for name in source.plain if not repo.plain_equals(name, source.read(name))]
    if differences:
        count = f"{_tensors(len(differences))} from {source.path}"
        raise BadInput(f"{repo.path}: {count}: {shortened(differences)}")
    report(f"int4 matrices: {len(source.linears)}, every code and scale equal; {len(source.plain)} other tensors equal")
    report(f"verified: {repo.path} holds what {source.path} holds")


def _same_embedding(repo: StoredRepo, source: AwqRepo) -> bool:
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


def _tensors(count: int) -> str:
    return "1 tensor differs" if count == 1 else f"{count} tensors differ"


def _short(name: str) -> str:
    """A linear's name, the same whether the repo sees or not."""
    return name.removeprefix("language_model.")
