"""GGUF files for llama.cpp: `model-Q4_0.gguf` or `model-Q4_0-embedding-F16.gguf`, and `mmproj-F16.gguf` if it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conversion.export.gguf_language import write_language_model
from conversion.export.gguf_vision import write_vision
from conversion.repos.awq_repo import AwqRepo

NAMES = {"q4_0": "model-Q4_0.gguf", "f16": "model-Q4_0-embedding-F16.gguf"}


@dataclass(frozen=True)
class GgufExporter:
    """Writes the files; `embedding` is a key of `NAMES`."""

    embedding: str

    def write(self, repo: AwqRepo, folder: Path) -> list[str]:
        """Writes all that llama.cpp needs.

        Args:
            repo: the converted repo.
            folder: an empty one.

        Returns:
            Lines for the user.

        Raises:
            BadInput: llama.cpp does not run such a model, float16 does not hold it, or it lacks its tokenizer.
        """
        lines = write_language_model(repo, folder / NAMES[self.embedding], embedding=self.embedding)
        if hasattr(repo.config, "vision_config"):
            lines += write_vision(repo, folder / "mmproj-F16.gguf")
        return lines
