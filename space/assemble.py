"""Assembles the upload for a Hugging Face Space: the chat, its pins, its card naming the model, the example pictures.

    python -m space.assemble --model OWNER/NAME [--output FOLDER]

Upload the folder with `hf upload OWNER/SPACE FOLDER --repo-type space`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from chat.errors import HubUnreachable, ModelError
from chat.repo import check_repo, find_repo

ROOT = Path(__file__).resolve().parents[1]
FILES = ("app.py", "int4_memory.py", "int4_versions.py", "requirements.txt", "LICENSE")
WRITTEN = frozenset({*FILES, "chat", "examples", "README.md"})


def check_model(model_id: str) -> None:
    """Checks that a Space can serve a model.

    Raises:
        HubUnreachable: Nobody knows; it may be well.
        ModelError: It is none of the Hub's, or the chat could not serve it.
    """
    if not model_id:
        raise ModelError("no model named: make space MODEL=OWNER/NAME, the model's repository on the Hub.")
    if Path(model_id).expanduser().exists():
        check_repo(find_repo(model_id))
        raise ModelError(
            f"{model_id}: this is on your disk, and a Space takes its model from the Hub. Upload it (hf upload "
            f"OWNER/NAME {model_id}), then give OWNER/NAME."
        )
    if model_id.count("/") != 1 or not all(model_id.split("/")):
        raise ModelError(f"{model_id}: not a repository of the Hub, which has the form OWNER/NAME.")
    check_repo(find_repo(model_id))


def check_output(output: Path) -> None:
    """Raises FileExistsError if a folder holds anything that was not assembled: all in it would be removed."""
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"--output {output}: is a file; give a folder that is empty or does not exist.")
    if foreign := sorted({path.name for path in output.iterdir()} - WRITTEN):
        raise FileExistsError(f"--output {output}: holds {foreign[0]}, which is no Space's; give another folder.")


def assemble(output: Path, model_id: str) -> None:
    """Writes the Space's files, over those of a Space assembled before.

    Args:
        output: The folder to write; made when missing.
        model_id: The Hub repository that the Space serves, OWNER/NAME; its name becomes the title of the card, from
            where the chat takes it.

    Raises:
        FileExistsError: The folder holds something else.
    """
    from huggingface_hub import metadata_load, metadata_save  # takes half a second, which `--help` shall not

    check_output(output)
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(ROOT / name, output / name)
    shutil.copytree(ROOT / "chat", output / "chat", ignore=shutil.ignore_patterns("__pycache__"))
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
    try:
        check_output(arguments.output)
        check_model(arguments.model)
    except HubUnreachable as error:
        print(f"The model was not looked at. {error}", file=sys.stderr)
    except (FileExistsError, ModelError) as error:
        print(f"space: error: {error}", file=sys.stderr)
        sys.exit(2)
    assemble(arguments.output, arguments.model)
    print(f"{arguments.output} is ready; upload it with: hf upload OWNER/SPACE {arguments.output} --repo-type space")


if __name__ == "__main__":
    main()
