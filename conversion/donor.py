"""Tensors that a checkpoint lacks, taken from a transformers repo that has them (the 4B upload lacks its projector)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from conversion.errors import BadInput
from conversion.name_map import first_layout

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Donor:
    """A folder or Hub repo of safetensors in any key layout of transformers' Gemma 3.

    Args:
        source: a folder, or the id of a Hub repo; of a repo only the index and the shards needed are fetched.

    Raises:
        BadInput: there is no such folder or repo, or it holds no safetensors.
    """

    def __init__(self, source: str):
        self.source = source
        index = self._file(INDEX, optional=True)
        try:
            if index is not None:
                files = json.loads(index.read_text())["weight_map"]
            else:
                with safe_open(self._file(SINGLE), "np") as file:
                    files = dict.fromkeys(file.keys(), SINGLE)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BadInput(f"--donor {source}: its weights cannot be read ({error})") from error
        self._places = {first_layout(name): (name, file) for name, file in files.items()}

    def holds(self, tensors: tuple[str, ...]) -> bool:
        """Whether all of these tensors (first key layout) are there."""
        return all(name in self._places for name in tensors)

    def read(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32.

        Raises:
            BadInput: its shape is another one, or it cannot be read.
        """
        name, file = self._places[tensor]
        try:
            with safe_open(self._file(file), "pt") as opened:
                values = opened.get_tensor(name).float().numpy()
        except (OSError, SafetensorError) as error:
            raise BadInput(f"--donor {self.source}: {name} cannot be read ({error})") from error
        if values.shape != shape:
            raise BadInput(f"--donor {self.source}: {name} is {list(values.shape)}, expected {list(shape)}")
        return values

    def _file(self, name: str, optional: bool = False) -> Path | None:
        folder = Path(self.source)
        if folder.is_dir():
            path = folder / name
            if not path.exists() and not optional:
                raise BadInput(f"--donor {self.source}: holds neither {INDEX} nor {SINGLE}")
            return path if path.exists() else None
        try:
            return Path(hf_hub_download(self.source, name))
        except EntryNotFoundError:
            if optional:
                return None
            raise BadInput(f"--donor {self.source}: holds neither {INDEX} nor {SINGLE}") from None
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise BadInput(f"--donor {self.source}: no folder, and no repo that can be fetched ({error})") from error
