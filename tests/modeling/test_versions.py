"""Other versions of transformers and torch are refused in one line, wherever the model comes from."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from gemma3_int4.int4_versions import check_versions
from transformers import AutoModelForImageTextToText, pipeline
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from tests.modeling.tiny_repo import ROOT

OLD = r"runs with transformers>=5\.23,<6 and torch>=2\.13; found transformers 5\.17\.0\. .* 'transformers>=5\.23,<6'$"


@pytest.mark.parametrize(
    ("versions", "outside"),
    [
        ({"transformers": "5.23.0", "torch": "2.13.0+cpu"}, None),
        ({"transformers": "5.24.0.dev0", "torch": "2.15.0"}, None),
        ({"transformers": "5.100", "torch": "3.0"}, None),
        ({"transformers": "4.57.6", "torch": "2.13.0"}, "found transformers 4.57.6"),
        ({"transformers": "5.22.1", "torch": "2.13.0"}, "found transformers 5.22.1"),
        ({"transformers": "6.0.0rc1", "torch": "2.13.0"}, "found transformers 6.0.0rc1"),
        ({"transformers": "5.23.0", "torch": "2.9.1+cu128"}, "found torch 2.9.1"),
        ({"transformers": "5.3.0", "torch": "2.9.1"}, "found transformers 5.3.0 and torch 2.9.1"),
    ],
)
def test_the_range(versions, outside):
    if outside is None:
        check_versions(versions)
        return
    with pytest.raises(ImportError) as caught:
        check_versions(versions)
    assert outside in str(caught.value)
    assert "\n" not in str(caught.value)


def hub_cache(repo: Path, cache: Path) -> str:
    """A cache of the Hub that holds `repo`, and the id that it has there."""
    commit = "0" * 40
    folder = cache / "models--somebody--gemma"
    shutil.copytree(repo, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return "somebody/gemma"


def test_an_old_transformers_is_refused(picture_repo, tmp_path, monkeypatch):
    folder = shutil.copytree(picture_repo.path, tmp_path / "another-name")  # so that its code is imported anew
    name = hub_cache(picture_repo.path, tmp_path / "cache")
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    for _ in range(2):  # the second time, the module is half imported already
        with pytest.raises(ImportError, match=OLD):
            AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ImportError, match=OLD):
        pipeline("image-text-to-text", model=str(folder), trust_remote_code=True, dtype=torch.bfloat16)
    with pytest.raises(ImportError, match=OLD):
        AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    assert AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).int4_bytes > 0
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, cache_dir=tmp_path / "cache")
    assert model.int4_bytes > 0


def test_the_modeling_file_names_all_its_files():
    """transformers 4 copies no others, and would end with FileNotFoundError before it is told that it is too old."""
    file = ROOT / "modeling_gemma3_int4.py"
    assert set(get_relative_imports(file)) == {Path(needed).stem for needed in get_relative_import_files(file)}
