"""Tensors that a checkpoint lacks, taken from a transformers repo that has them (the 4B upload lacks its projector)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    XetDownloadError,
)
from safetensors import SafetensorError, safe_open

from conversion.errors import BadInput, SourceLost, first_line
from conversion.name_map import first_layout
from conversion.shards import INDEX

SINGLE = "model.safetensors"


class Donor:
    """A folder or Hub repo of safetensors in any key layout of transformers' Gemma 3.

    Args:
        source: a folder, or the id of a Hub repo; of a repo only the index and the shards needed are fetched.

    Raises:
        BadInput: there is no such folder or repo, or it holds no safetensors.
        SourceLost: the Hub cannot be reached.
    """

    def __init__(self, source: str):
        self.source = source
        self._folder = Path(source) if Path(source).is_dir() else None
        index = self._file(INDEX, optional=True)
        try:
            if index is not None:
                files = json.loads(index.read_text())["weight_map"]
            else:
                with safe_open(self._file(SINGLE), "np") as file:
                    files = dict.fromkeys(file.keys(), SINGLE)
        except OSError as error:
            raise self._lost(error) from error
        except (ValueError, KeyError, AttributeError, SafetensorError) as error:
            raise BadInput(f"--donor {source}: its weights cannot be read ({error})") from error
        self._places = {first_layout(name): (name, file) for name, file in files.items()}

    def holds(self, tensors: tuple[str, ...]) -> bool:
        """Whether all of these tensors (first key layout) are there."""
        return all(name in self._places for name in tensors)

    def read(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32.

        Raises:
            BadInput: its shape is another one, or its file is damaged.
            SourceLost: its file cannot be read or fetched.
        """
        name, file = self._places[tensor]
        try:
            with safe_open(self._file(file), "pt") as opened:
                values = opened.get_tensor(name).float().numpy()
        except OSError as error:
            raise self._lost(error) from error
        except SafetensorError as error:
            raise BadInput(f"--donor {self.source}: {name} cannot be read ({error})") from error
        if values.shape != shape:
            raise BadInput(f"--donor {self.source}: {name} is {list(values.shape)}, expected {list(shape)}")
        return values

    def _file(self, name: str, optional: bool = False) -> Path | None:
        try:
            if self._folder is None:
                return Path(hf_hub_download(self.source, name))
            if (self._folder / name).exists():
                return self._folder / name
            raise EntryNotFoundError
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but says that the Hub is out of reach
            raise self._lost(error) from error
        except EntryNotFoundError:
            if optional:
                return None
            missing = f"neither {INDEX} nor {SINGLE}" if name == SINGLE else f"no {name}"
            raise BadInput(f"--donor {self.source}: holds {missing}") from None
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise BadInput(f"--donor {self.source}: no folder, and no repo that is yours to read ({error})") from error
        except (OSError, HTTPError, XetDownloadError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> SourceLost:
        return SourceLost(f"--donor {self.source}: cannot be read or fetched: {first_line(error)}")
