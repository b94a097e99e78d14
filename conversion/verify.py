"""Proof of a finished repo: against its own manifest, and number by number against its source.

* `check_repo`: hashes, index, names, shapes and dtypes; needs nothing but the repo.
* `prove_repo`: reads every stored tensor back and compares it with the checkpoint.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion.awq_repo import SIDE_FILE, SafetensorsFile
from conversion.errors import BadInput, shortened
from conversion.flax_checkpoint import FlaxCheckpoint, Leaf
from conversion.formats import awq, embedding
from conversion.hub_repo import check_finished
from conversion.int4_grid import GROUP_SIZE, Recovered, dequantise, recover
from conversion.leaf_writer import block_rows, kind_of, output_tensors, place_of
from conversion.name_map import Entry, entries, is_language, make_plan
from conversion.shards import DTYPES, INDEX, SCALES, sha256
from conversion.sizes import read_config

MANIFEST = "conversion.json"


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
            line = f"{name}: {self.tensors[kind]}, every code equal; products equal in all of {exact} groups"
            if rounded:
                line += (
                    f" with an exact scale; {rounded} scales are the source's, rounded, worst relative error "
                    f"{self.worst[kind]:.3g}"
                )
            yield line
        yield f"other tensors: {self.tensors['plain']}, each equal to its source, rounded to the dtype of the repo"


class Repo:
    """The files of a finished repo, opened for reading parts of tensors.

    Raises:
        BadInput: a file is missing or unreadable.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest = self._json(MANIFEST)
        self.index = self._json(INDEX)
        self.config = read_config(path / "config.json")
        try:
            self.dtype = self.manifest["options"]["dtype"]
            self.scale_dtype = self.manifest["scales"]["dtype"]
            self.embedding = self.manifest["options"]["embedding"]
            shards = sorted(set(self.index["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: {MANIFEST} or {INDEX} lacks {error}; convert again") from error
        self.files = {name: SafetensorsFile(path / name) for name in shards}
        self.places = {tensor: file for file in self.files.values() for tensor in file.header}
        self.side = SafetensorsFile(path / SIDE_FILE) if self.embedding == "plain" else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.places[name].read(name, start, stop)

    def _json(self, name: str) -> dict:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.path / name}: cannot be read ({error}); is this a converted repo?") from error


def check_repo(path: Path, workers: int, report: Callable[[str], None]) -> Repo:
    """Checks a repo against its manifest and its configuration.

    Raises:
        BadInput: a hash, a name, a shape or a dtype differs.
    """
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; verify takes the folder of a converted repo")
    check_finished(path)
    repo = Repo(path)
    hashes = repo.manifest.get("files", {})
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    present = {name for name in present if not name.startswith((".git/", ".cache/"))} - {MANIFEST, ".gitattributes"}
    problems = [f"{name} is missing" for name in sorted(set(hashes) - present)]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present - set(hashes))]
    names = sorted(set(hashes) & present)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda name: sha256(path / name), names)
        problems += [
            f"{name} is not the file that was written (SHA-256)"
            for name, digest in zip(names, found, strict=True)
            if digest != hashes[name]
        ]
    problems += _structure(repo)
    if problems:
        raise BadInput(f"{path}: {len(problems)} problems: {shortened(problems)}; convert or download it again")
    report(f"files: {len(names)}, every SHA-256 as in {MANIFEST}")
    report(f"index, names, shapes, dtypes: {len(repo.places)} tensors as config.json asks for")
    return repo


def _structure(repo: Repo) -> list[str]:
    """What differs between the tensors that config.json asks for, the index, and the shards."""
    vocabulary = repo.config.get_text_config().vocab_size
    expected = {
        spec.name: spec
        for entry in entries(repo.config, vocabulary)
        for spec in output_tensors(entry, repo.dtype, repo.embedding, vocabulary)
    }
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(repo.places))]
    problems += [f"{name} is not part of the model" for name in sorted(set(repo.places) - set(expected))]
    for name in sorted(set(expected) & set(repo.places)):
        spec, file = expected[name], repo.places[name]
        dtype = DTYPES[repo.scale_dtype if spec.dtype == SCALES else spec.dtype][1]
        if (file.shape(name), file.dtype(name)) != (spec.shape, dtype):
            problems.append(f"{name} is {file.dtype(name)} {list(file.shape(name))}, not {dtype} {list(spec.shape)}")
    actual = {name: file.path.name for name, file in repo.places.items()}
    listed = repo.index["weight_map"]
    problems += [f"{INDEX} misplaces {name}" for name in listed if actual.get(name) != listed[name]]
    problems += [f"{INDEX} lacks {name}" for name in actual if name not in listed]
    return problems


def prove_repo(repo: Repo, checkpoint: FlaxCheckpoint, workers: int, report: Callable[[str], None]) -> None:
    """Compares every stored tensor with the checkpoint.

    * codes: every one is the source's;
    * products: float32(code * stored scale) is the source's float wherever the stored scale is exact; elsewhere the
      stored scale is the source's, rounded;
    * every other tensor: the source's, rounded to the dtype of the repo.

    Raises:
        BadInput: anything differs, or the checkpoint is another one.
    """
    shapes = {name: leaf.shape for name, leaf in checkpoint.leaves.items()}
    if repo.manifest["options"]["text_only"]:
        shapes = {name: shape for name, shape in shapes.items() if is_language(name)}
    donated = set((repo.manifest["source"]["donor"] or {}).get("leaves", []))
    plan, missing = make_plan(shapes, repo.config, lambda tensors: True)
    if missing != donated:
        raise BadInput(f"{checkpoint.directory}: lacks {', '.join(sorted(missing - donated))}: another source")
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
        differences = f"{len(proof.differences)} tensors differ from {checkpoint.directory}"
        raise BadInput(f"{repo.path}: {differences}: {shortened(sorted(proof.differences))}")
    for line in proof.lines():
        report(line)
    if donated:
        report(f"from a donor, not in the source: {', '.join(sorted(donated))}")
    report(f"verified: {repo.path} holds what {checkpoint.directory} holds")


def _prove_plain(repo: Repo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    for name, tensor in zip(entry.tensors, entry.rule.axes.to_tensors(leaf.read()), strict=True):
        stored = repo.read(name)
        if stored.tobytes() != np.ascontiguousarray(tensor).astype(stored.dtype).tobytes():
            with lock:
                proof.differences.append(f"{name} is not its source, rounded to {repo.dtype}")


def _prove_linears(repo: Repo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    stems = [name.removesuffix("weight") for name in entry.tensors]
    qweights = [repo.read(f"{stem}qweight") for stem in stems]
    scales = [repo.read(f"{stem}scales") for stem in stems]
    wrong = set()
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        tensor, ins, outs = place_of(entry, block)
        groups = slice(ins.start // GROUP_SIZE, ins.stop // GROUP_SIZE)
        codes = awq.unpack(qweights[tensor][ins, outs.start // 8 : outs.stop // 8])
        stored = scales[tensor][groups, outs]
        if entry.grouped_by_row:
            codes, stored = codes.T, stored.T
        axis = 1 if entry.grouped_by_row else 0
        if not _same(block.values, recover(block.values, axis), codes, stored, axis, "linear", proof, lock):
            wrong.add(entry.tensors[tensor])
    wrong |= {f"{stem}qzeros" for stem in stems if (repo.read(f"{stem}qzeros") != awq.ZERO_WORD).any()}
    with lock:
        proof.differences += [f"{name}: codes, scales or products differ" for name in sorted(wrong)]


def _prove_embedding(repo: Repo, entry: Entry, leaf: Leaf, proof: Proof, lock: threading.Lock) -> None:
    name = entry.tensors[0]
    stem = name.removesuffix("weight")
    fine = True
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        source = recover(block.values, 1)
        codes, scales, weight = _embedding_rows(repo, stem, block.row, block.row + len(block.values))
        fine &= _same(block.values, source, codes, scales, 1, "embedding", proof, lock)
        if weight is not None:
            fine &= bool((weight == dequantise(source.codes, source.scales).astype(weight.dtype)).all())
    codes, _, weight = _embedding_rows(repo, stem, leaf.shape[0], repo.config.get_text_config().vocab_size)
    fine &= not codes.any() and (weight is None or not weight.any())
    if not fine:
        with lock:
            proof.differences.append(f"{name}: rows, codes, scales or products differ")


def _embedding_rows(repo: Repo, stem: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, scales and, if the embedding is plain, the weights of some rows."""
    if repo.side is None:
        codes = embedding.unpack(repo.read(f"{stem}qweight", start, stop))
        return codes, repo.read(f"{stem}scales", start, stop), None
    scales = repo.side.read(f"{stem}scales", start, stop)
    weight = repo.read(f"{stem}weight", start, stop)
    ratio = weight.astype(np.float32) / np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=1)
    return np.rint(ratio).astype(np.int8), scales, weight


def _same(
    values: np.ndarray,
    source: Recovered,
    codes: np.ndarray,
    scales: np.ndarray,
    axis: int,
    kind: str,
    proof: Proof,
    lock: threading.Lock,
) -> bool:
    """Whether stored codes and scales are those recovered from a block of the source; adds to the proof."""
    exact = scales.astype(np.float32) == source.scales
    products = dequantise(codes, scales.astype(np.float32), axis) == values
    shape = (-1, GROUP_SIZE, products.shape[1]) if axis == 0 else (products.shape[0], -1, GROUP_SIZE)
    equal = products.reshape(shape).all(axis=1 if axis == 0 else 2)
    with np.errstate(over="ignore", under="ignore"):
        rounded = source.scales.astype(scales.dtype) == scales
    with lock:
        proof.exact_groups[kind] += int(np.count_nonzero(exact & equal))
        proof.rounded_groups[kind] += int(np.count_nonzero(~(exact & equal)))
        if not exact.all():
            error = np.abs(scales.astype(np.float64) - source.scales) / source.scales
            proof.worst[kind] = max(proof.worst[kind], float(error.max()))
    # A group that lies on no grid has its least-squares scale, and no product to be equal to.
    unequal = int(np.count_nonzero(exact & ~equal))
    return bool((codes == source.codes).all() and rounded.all() and unequal <= source.inexact)
