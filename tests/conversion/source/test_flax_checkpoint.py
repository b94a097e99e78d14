"""Reading Orbax: every variant gives the same bytes, metadata comes first, damage is told in plain words.

Run: pytest tests/conversion/source/test_flax_checkpoint.py
"""

import json
import shutil

import numpy as np
import pytest
import tensorstore as ts

from conversion.errors import BadInput, SourceLost
from conversion.source.flax_checkpoint import FlaxCheckpoint
from conversion.source.stored_bytes import plain_errors
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny

VARIANTS = {
    "default": {},
    "zarr3": {"zarr3": True},
    "folders": {"ocdbt": False},
    "folders-zarr3": {"ocdbt": False, "zarr3": True},
    "chunks": {"chunk_bytes": 3000},
    "chunks-zarr3": {"chunk_bytes": 3000, "zarr3": True},
    "uncompressed": {"compression": False},
}


@pytest.fixture(scope="module")
def tree():
    return tiny.make_tree(tiny.multimodal_config())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_reads_the_same(tree, variant, tmp_path):
    save_tree(tree, tmp_path / "checkpoint", **VARIANTS[variant])
    checkpoint = FlaxCheckpoint(tmp_path / "checkpoint")
    assert set(checkpoint.leaves) == {f"{module}/{leaf}" for module, leaves in tree.items() for leaf in leaves}
    for name, leaf in checkpoint.leaves.items():
        module, last = name.rsplit("/", 1)
        values = tree[module][last]
        assert leaf.shape == values.shape
        assert leaf.dtype == np.float32
        assert leaf.nbytes == values.nbytes
        assert (leaf.read() == values).all()
        if values.ndim > 1:
            for rows in (32, 96, 1024):
                assert (_put_together(leaf.blocks(rows), values.shape, rows) == values).all()


def _put_together(blocks, shape, rows):
    result = np.full(shape, np.nan, np.float32)
    for block in blocks:
        assert block.row % rows == 0
        assert len(block.values) <= rows
        result[(*block.lead, slice(block.row, block.row + len(block.values)))] = block.values
    return result


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("compression", ["zstd", "gzip", None])
@pytest.mark.parametrize("chunks", [(10, 40, 64), (1, 16, 64), (3, 24, 64), (1, 40, 40), (10, 7, 64)])
def test_any_chunking_and_compression(zarr_format, compression, chunks, tmp_path):
    """Arrays as any writer of zarr might lay them out, partial chunks at the edges included."""
    values = np.random.default_rng(0).standard_normal((10, 40, 64)).astype(np.float32)
    key = "transformer/layer_0/attn/q_einsum.w"
    kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path}/"}, "path": f"{key}/"}
    if zarr_format == 2:
        compressor = {"zstd": {"id": "zstd", "level": 1}, "gzip": {"id": "gzip", "level": 1}, None: None}[compression]
        spec = {"driver": "zarr", "metadata": {"chunks": chunks, "compressor": compressor}}
    else:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        codecs += [{"name": compression, "configuration": {"level": 1}}] if compression else []
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        spec = {"driver": "zarr3", "metadata": {"chunk_grid": grid, "codecs": codecs}}
    array = ts.open(spec | {"kvstore": kvstore}, create=True, dtype=ts.float32, shape=values.shape).result()
    array.write(values).result()
    parts = [{"key": part, "key_type": 2} for part in key.rsplit(".", 1)]
    metadata = {"tree_metadata": {key: {"key_metadata": parts}}, "use_zarr3": zarr_format == 3}
    (tmp_path / "_METADATA").write_text(json.dumps(metadata))

    leaf = FlaxCheckpoint(tmp_path).leaves[key.replace(".", "/")]
    assert (leaf.read() == values).all()
    for rows in (8, 32):
        assert (_put_together(leaf.blocks(rows), values.shape, rows) == values).all()


def test_a_nested_tree_is_understood(tree, tmp_path):
    nested = {}
    for module, leaves in tree.items():
        node = nested
        for part in module.split("/"):
            node = node.setdefault(part, {})
        node.update(leaves)
    flat_names = {f"{module}/{leaf}" for module, leaves in tree.items() for leaf in leaves}
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", args=ocp.args.PyTreeSave(nested))
    assert set(FlaxCheckpoint(tmp_path / "checkpoint").leaves) == flat_names


def test_the_checkpoint_is_found_below_the_folder(tree, tmp_path):
    save_tree(tree, tmp_path / "archive" / "gemma3-int4")
    (tmp_path / "archive" / "tokenizer.model").write_bytes(b"x")
    assert FlaxCheckpoint(tmp_path / "archive").directory == tmp_path / "archive" / "gemma3-int4"
    save_tree(tree, tmp_path / "archive" / "other")
    with pytest.raises(BadInput, match="several checkpoints"):
        FlaxCheckpoint(tmp_path / "archive")


def test_the_fingerprint_tells_checkpoints_apart(tree, tmp_path):
    save_tree(tree, tmp_path / "a")
    first = FlaxCheckpoint(tmp_path / "a").files.fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert FlaxCheckpoint(tmp_path / "b").files.fingerprint() == first
    data = max(tmp_path.glob("b/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert FlaxCheckpoint(tmp_path / "b").files.fingerprint() != first


@pytest.fixture
def saved(tree, tmp_path):
    save_tree(tree, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def folders(tree, tmp_path):
    save_tree(tree, tmp_path / "folders", ocdbt=False)
    return tmp_path / "folders"


def _largest_data_file(checkpoint):
    return max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)


def test_no_checkpoint(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        FlaxCheckpoint(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no _METADATA"):
        FlaxCheckpoint(tmp_path)
    (tmp_path / "_METADATA").write_text("[]")
    with pytest.raises(BadInput, match="not Orbax metadata"):
        FlaxCheckpoint(tmp_path)


def test_a_missing_data_file(saved):
    _largest_data_file(saved).unlink()
    with pytest.raises(BadInput, match="data file missing or cut short"):
        FlaxCheckpoint(saved)


def test_a_truncated_data_file(saved):
    path = _largest_data_file(saved)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(BadInput, match="data file missing or cut short"):
        FlaxCheckpoint(saved)


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage"])
def test_a_broken_manifest(saved, damage):
    manifest = saved / "manifest.ocdbt"
    if damage == "gone":
        manifest.unlink()
    else:
        manifest.write_bytes(b"" if damage == "empty" else b"\x00" * 119)
    with pytest.raises(BadInput):
        FlaxCheckpoint(saved)


def test_a_missing_chunk_is_not_read_as_zeros(folders):
    (folders / "transformer/layer_0/mlp/linear.w/0.0").unlink()
    with pytest.raises(BadInput, match=r"transformer/layer_0/mlp/linear/w: 1 of 1 data chunks are missing"):
        FlaxCheckpoint(folders)


def test_a_leaf_listed_but_absent(folders):
    shutil.rmtree(folders / "transformer/layer_0/mlp/linear.w")
    with pytest.raises(BadInput, match="transformer/layer_0/mlp/linear/w: listed in _METADATA"):
        FlaxCheckpoint(folders)


def test_damaged_compression_is_an_error(folders):
    chunk = folders / "transformer/layer_0/mlp/linear.w/0.0"
    content = bytearray(chunk.read_bytes())
    content[:4] = b"\x00" * 4  # no zstd frame any more
    chunk.write_bytes(content)
    leaf = FlaxCheckpoint(folders).leaves["transformer/layer_0/mlp/linear/w"]
    with pytest.raises(BadInput, match="damaged"):
        leaf.read()


def test_a_chunk_that_is_cut_short_inside(folders):
    chunk = folders / "transformer/layer_0/mlp/linear.w/0.0"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    leaf = FlaxCheckpoint(folders).leaves["transformer/layer_0/mlp/linear/w"]
    with pytest.raises(BadInput, match=r"ends early|damaged"):
        leaf.read()


@pytest.mark.parametrize("chunk_bytes", [None, 3000])
@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_source_that_vanishes(tree, tmp_path, chunk_bytes, ocdbt):
    save_tree(tree, tmp_path / "checkpoint", ocdbt=ocdbt, chunk_bytes=chunk_bytes)
    checkpoint = FlaxCheckpoint(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint")
    name = "transformer/layer_0/mlp/linear/w"
    with pytest.raises(SourceLost, match=name):
        list(checkpoint.leaves[name].blocks(32))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("UNKNOWN: Error reading Byte range [0, 6): Input/output error [os_error_code='5']", SourceLost),
        ("DEADLINE_EXCEEDED: Error reading from open file: Connection timed out [os_error_code='110']", SourceLost),
        ("RESOURCE_EXHAUSTED: Error reading from open file: Cannot allocate memory [os_error_code='12']", SourceLost),
        ("OUT_OF_RANGE: Requested byte range [-1, ?) is not valid", SourceLost),
        ("FAILED_PRECONDITION: Error reading local file: Truncated Zstd-compressed stream", BadInput),
        ("DATA_LOSS: Error decoding manifest: CRC-32C checksum verification failed", BadInput),
    ],
)
def test_what_cannot_be_read_is_told_from_what_is_damaged(message, kind):
    """Messages as tensorstore wrote them for errors of the operating system, and for damaged files."""
    with pytest.raises(BadInput) as caught, plain_errors("leaf"):
        raise ValueError(message)
    assert caught.type is kind
