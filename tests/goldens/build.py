"""The golden cases as tests want them: Kaggle-layout checkpoints made from their seeds, beside what must come out.

    CASES            their names
    leaves           a case's checkpoint in memory
    build            the same on disk, with case.json and expected.npz beside it

README.md in this folder says what they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

from demo.flax_export import save_tree

FOLDER = Path(__file__).parent
CASES = sorted(path.parent.name for path in FOLDER.glob("*/case.json"))
GROUP_SIZE = 32
EMBEDDING_DEVIATION = 0.05


def leaves(name: str) -> dict[str, np.ndarray]:
    """Every leaf of a case's checkpoint, float32: drawn from the case's seed, SigLIP's kernels from siglip.npz.

    Raises:
        ValueError: the leaves are not those that the expected logits were computed from: NumPy draws other numbers.
    """
    case = json.loads((FOLDER / name / "case.json").read_text())
    kernels = dict(np.load(FOLDER / name / "siglip.npz")) if case["checkpoint"]["multimodal"] else {}
    generator = np.random.default_rng(case["seed"])
    found = {}
    for leaf, shape in case["checkpoint"]["shapes"].items():  # in the order in which they were drawn
        found[leaf] = kernels[leaf] if leaf in kernels else _drawn(leaf, tuple(shape), generator, case["checkpoint"])
    if digest(found) != case["checkpoint"]["sha256"]:
        raise ValueError(f"the checkpoint of {name} is another one with NumPy {np.__version__} than with 2.3.5")
    return found


def _drawn(leaf: str, shape: tuple[int, ...], generator: np.random.Generator, layout: dict) -> np.ndarray:
    values = generator.standard_normal(shape)
    matrix = next((part for part in leaf.split("/")[-2:] if part in layout["group_axis"]), None)
    if matrix is not None:
        return _on_grid(values, matrix, layout["group_axis"][matrix])
    if leaf.endswith("mm_input_projection/w"):
        values *= shape[0] ** -0.5
    elif leaf.startswith("SigLiP") and leaf.endswith("scale"):
        values = 1 + 0.2 * values
    else:
        values *= 0.3 if leaf.endswith("scale") else 0.1
    return values.astype(np.float32)


def _on_grid(values: np.ndarray, matrix: str, axis: int) -> np.ndarray:
    """Rounds a matrix to int4 codes times bfloat16 scales, absmax / 7 of each group along an axis of the leaf."""
    # attn_vec_einsum contracts heads and their dimensions; its groups lie along the latter.
    inputs = math.prod(values.shape[:2]) if matrix == "attn_vec_einsum" else values.shape[axis]
    values = values * (EMBEDDING_DEVIATION if matrix == "input_embedding" else inputs**-0.5)
    moved = np.moveaxis(values.astype(np.float32), axis, -1)
    groups = moved.reshape(-1, GROUP_SIZE)
    scales = (np.abs(groups).max(1, keepdims=True) / 7).astype(ml_dtypes.bfloat16).astype(np.float32)
    codes = np.rint(groups / scales).clip(-7, 7)
    return np.ascontiguousarray(np.moveaxis((codes * scales).reshape(moved.shape), -1, axis))


def digest(found: dict[str, np.ndarray]) -> str:
    """SHA-256 of all leaves in the order of their names: name, then bytes."""
    whole = hashlib.sha256()
    for leaf in sorted(found):
        whole.update(leaf.encode())
        whole.update(np.ascontiguousarray(found[leaf]).tobytes())
    return whole.hexdigest()


def build(name: str, folder: Path) -> Path:
    """Writes a case to a folder of its name, which it returns: checkpoint/ (by Orbax), case.json and expected.npz."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for leaf, values in leaves(name).items():
        module, parameter = leaf.rsplit("/", 1)
        tree.setdefault(module, {})[parameter] = values
    target = folder / name
    target.mkdir(parents=True)
    save_tree(tree, target / "checkpoint")
    for file in ("case.json", "expected.npz"):
        shutil.copy(FOLDER / name / file, target)
    return target
