"""Which repository is served, and whether it can be: from file names and JSON alone, before anything heavy is imported.

default_model   the repository that is served where none is named
find_repo       a folder or a Hub id -> its files other than the weights
check_repo      the reasons for which the chat could not answer, each in a sentence
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from chat.errors import HubUnreachable, ModelError

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.h5", "*.msgpack", "*.pth", "*.onnx")  # the large files of a Hub repo
LFS_POINTER = b"version https://git-lfs"
ORBAX_FILES = {"_METADATA", "_CHECKPOINT_METADATA", "_sharding", "manifest.ocdbt"}


@dataclass(frozen=True)
class Repo:
    """A model's repository.

    Attributes:
        id: What the user named: a folder, or a Hub id.
        folder: Where its files are. Of a Hub repository only those other than the weights are sure to be there.
        on_hub: Whether `id` is one of the Hub's.
    """

    id: str
    folder: Path
    on_hub: bool = False

    @property
    def name(self) -> str:
        """The Hub id; of a folder the first heading of its card, else the folder's name."""
        if self.on_hub:
            return self.id
        card = self.folder / "README.md"
        heading = re.search(r"^# (.+)$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
        return heading[1].strip() if heading else self.folder.resolve().name

    @property
    def about(self) -> str:
        """What a demonstration checkpoint can do: the first paragraph of its examples/README.md, headings aside."""
        page = self.folder / "examples" / "README.md"
        if not page.is_file():
            return ""
        paragraphs = [block for block in page.read_text(encoding="utf-8").split("\n\n") if not block.startswith("#")]
        return " ".join(paragraphs[0].split()) if paragraphs else ""

    def examples(self) -> list[dict]:
        """The model's own questions about pictures, else the project's: [{"text": question, "files": [picture]}]."""
        for folder in (self.folder / "examples", ROOT / "examples"):
            if (folder / "answers.json").is_file():
                listed = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
                return [{"text": each["question"], "files": [str(folder / each["picture"])]} for each in listed]
        return []

    def json(self, name: str) -> dict:
        """A JSON file's content; {} where there is no such file.

        Raises:
            ModelError: The file is no JSON object.
        """
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.id}: {name} cannot be read ({error}). Please fetch it again.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.id}: {name} is not a JSON object. Please fetch it again.")
        return content


def default_model() -> str:
    """MODEL_ID; else the checkpoint in the project's folder; else, in a Space, the first model that its card names.

    Raises:
        ModelError: There is none of these.
    """
    if model_id := os.environ.get("MODEL_ID"):
        return model_id
    if (ROOT / "config.json").is_file():
        return str(ROOT)
    from huggingface_hub import metadata_load  # takes half a second, which `--help` shall not

    card = ROOT / "README.md"
    models = (metadata_load(card) or {}).get("models") if card.is_file() else None
    if not models:
        raise ModelError("No model: there is no config.json beside app.py. Name one with --model FOLDER_OR_HUB_ID.")
    return models[0]


def find_repo(model_id: str) -> Repo:
    """Finds a folder, else a repository on the Hub; of that, fetches the files other than the weights.

    Raises:
        ModelError: There is no such repository.
        HubUnreachable: It may be on the Hub.
    """
    path = Path(model_id).expanduser()
    if path.is_dir():
        return Repo(model_id, path)
    if path.suffix == ".gguf":
        raise ModelError(f"{model_id}: a GGUF file is for llama.cpp. {_NOT_OURS}")
    if path.exists():
        raise ModelError(f"{model_id}: this is a file. Give the folder of an unpacked, converted model.")
    if model_id.startswith("kaggle:"):
        raise ModelError(f"{model_id}: a checkpoint of Kaggle's has to be converted first: {_convert(model_id)}")
    return Repo(model_id, _fetch(model_id), on_hub=True)


def _fetch(model_id: str) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second, which `--help` shall not
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    missing = f"{model_id}: there is no such folder"
    try:
        return Path(snapshot_download(model_id, ignore_patterns=list(WEIGHTS), tqdm_class=NoBar))
    except HFValidationError:
        raise ModelError(f"{missing}, and a Hub id has the form OWNER/NAME.") from None
    except GatedRepoError:
        terms = f"https://huggingface.co/{model_id}"
        raise ModelError(f"{model_id}: gated. Accept its terms at {terms}, then log in: hf auth login") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{missing}, and no such model on the Hugging Face Hub (for a private one, log in first: hf auth login)."
        ) from None
    except LocalEntryNotFoundError as error:
        reason = error.__cause__ or "offline mode"
        raise HubUnreachable(f"{missing}, and the Hugging Face Hub cannot be reached ({reason}).") from None
    except HfHubHTTPError as error:
        raise ModelError(f"{model_id}: the Hugging Face Hub answers: {' '.join(str(error).split())}") from error


_NOT_OURS = "The chat takes the AWQ format, as convert_flax.py writes it: give the repo that this one was made from."


def _convert(checkpoint: str) -> str:
    return f"python convert_flax.py convert --checkpoint {checkpoint} --output REPO"


def check_repo(repo: Repo) -> None:
    """Looks for all that the chat needs.

    Raises:
        ModelError: What is missing or of another kind, in one sentence, and what to do.
    """
    names = {path.name for path in repo.folder.iterdir()}
    if "config.json" not in names:
        raise ModelError(f"{repo.id}: {_without_config(repo, names)}")
    config = repo.json("config.json")
    if problem := (
        _format_problem(config) or _text_problem(repo, names, config) or _missing_files(repo, names, config)
    ):
        raise ModelError(f"{repo.id}: {problem}")


def _without_config(repo: Repo, names: set[str]) -> str:
    """What a folder with no config.json is."""
    inside = sorted(path.parent.name for path in repo.folder.glob("*/config.json"))
    if names & ORBAX_FILES or any(repo.folder.glob("*/_METADATA")):
        return f"a Flax checkpoint has to be converted first: {_convert(repo.id)}"
    if any(name.endswith(".gguf") for name in names):
        return f"GGUF files are for llama.cpp. {_NOT_OURS}"
    if "adapter_config.json" in names:
        return "this is an adapter, and the chat serves whole models only."
    if inside:
        return f"no config.json here, but one in {inside[0]}: give {Path(repo.id) / inside[0]}"
    return "no config.json here. The chat takes a model's folder or Hub id, as convert_flax.py writes it."


def _format_problem(config: dict) -> str:
    """Why these weights cannot be run."""
    if not str(config.get("model_type")).startswith("gemma3"):
        return f"config.json tells of a {config.get('model_type')} model, and the chat is for Gemma 3."
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is None and "quantization" in config:
        return f"this is in MLX's format. {_NOT_OURS}"
    if method == "compressed-tensors":
        return f"the compressed-tensors format is for vLLM. {_NOT_OURS}"
    if method not in (None, "awq"):
        return f"these weights are in the format {method}. {_NOT_OURS}"
    if method == "awq" and "auto_map" not in config:
        return "config.json has no auto_map, so these are not weights of convert_flax.py, and would run in float16."
    return ""


def _text_problem(repo: Repo, names: set[str], config: dict) -> str:
    """Why a question would not become tokens."""
    if not names & {"tokenizer.json", "tokenizer.model"}:
        return "no tokenizer.json here. Convert again with --tokenizer, or copy it from the model's original repo."
    if config.get("vision_config") and not names & {"processor_config.json", "preprocessor_config.json"}:
        return (
            "the model sees, and there is no preprocessor_config.json or processor_config.json to tell how. Copy both "
            "from the model's original repo."
        )
    if not names & {"chat_template.jinja", "chat_template.json"} and not any(
        repo.json(name).get("chat_template") for name in ("tokenizer_config.json", "processor_config.json")
    ):
        return (
            "a base model, which goes on with a text and cannot chat: there is no chat_template.jinja. Give an "
            "instruction-tuned model (-it)."
        )
    return ""


def _missing_files(repo: Repo, names: set[str], config: dict) -> str:
    """Which code or weights are not there; the Hub's weights are yet to come."""
    classes = [name for name in config.get("auto_map", {}).values() if isinstance(name, str) and "--" not in name]
    for file in sorted({f"{name.split('.')[0]}.py" for name in classes} - names):
        return f"{file}, the code that config.json names, is missing. Copy it from the model's original repo."
    if repo.on_hub:
        return ""
    shards = set(repo.json("model.safetensors.index.json").get("weight_map", {}).values()) or {"model.safetensors"}
    for file in sorted(shards):
        if file not in names:
            return f"{file} is missing, so the weights are not complete. Please fetch it."
        with (repo.folder / file).open("rb") as weights:
            if weights.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file} is a pointer of Git LFS, not the weights. Fetch them: git lfs pull"
    return ""
