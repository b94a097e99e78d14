"""Assembles the upload for a Hugging Face Space: the app, its pins, its card naming the model, the example pictures.

    python space/assemble.py --model OWNER/NAME [--output FOLDER]

Upload the folder with `hf upload OWNER/SPACE FOLDER --repo-type space`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from huggingface_hub import metadata_load, metadata_save

ROOT = Path(__file__).resolve().parents[1]


def assemble(output: Path, model_id: str) -> None:
    """Writes the Space's files, over whatever was in the folder.

    Args:
        output: The folder to write; made when missing.
        model_id: The Hub repository the Space serves; its name becomes the title of the card,
            from where `app.py` takes it.

    Raises:
        ValueError: `model_id` is not of the form OWNER/NAME.
    """
    if model_id.count("/") != 1 or not all(model_id.split("/")):
        raise ValueError(f"model {model_id!r} is not a Hub repository; expected OWNER/NAME")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    for name in ("app.py", "requirements.txt", "LICENSE"):
        shutil.copyfile(ROOT / name, output / name)
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", output / "examples", ignore=shutil.ignore_patterns("README.md"))
    card = output / "README.md"
    shutil.copyfile(ROOT / "space" / "README.md", card)
    metadata_save(card, {**metadata_load(card), "title": model_id.split("/")[1], "models": [model_id]})


def main() -> None:
    parser = argparse.ArgumentParser(description="Assemble the upload for a Hugging Face Space.")
    parser.add_argument("--model", required=True, help="the Hub repository to serve, OWNER/NAME")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "space", help="default: build/space")
    arguments = parser.parse_args()
    assemble(arguments.output, arguments.model)
    print(f"{arguments.output} is ready; upload it with: hf upload OWNER/SPACE {arguments.output} --repo-type space")


if __name__ == "__main__":
    main()
