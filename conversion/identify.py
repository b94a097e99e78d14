"""What a path, a name or an address is that was given in place of something else, and what to type instead.

Looks at names and first bytes alone, and imports nothing heavy.

    identify            a path -> what it is
    source_kind         a path -> which kind of source it is
    kaggle_reference    a handle or a web address of Kaggle's -> kaggle:...
    hub_id              a name or a web address of the Hub's -> owner/name
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

PREFIX = "kaggle:"
GEMMA = "google/gemma-3/flax/"
GOOGLES = tuple(f"gemma3-{size}-{variant}-int4" for size in ("1b", "4b", "12b", "27b") for variant in ("it", "pt"))
EXAMPLE = f"{PREFIX}{GOOGLES[-2]}"
HUB = "hf:"
HUB_EXAMPLE = f"{HUB}google/gemma-3-27b-it-qat-q4_0-gguf"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # names that llama.cpp's gguf-split gives

ARCHIVES = {
    "gzip": (0, b"\x1f\x8b"),
    "zip": (0, b"PK\x03\x04"),
    "tar": (257, b"ustar"),
    "bzip2": (0, b"BZh"),
    "xz": (0, b"\xfd7zXZ\x00"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
    "7z": (0, b"7z\xbc\xaf\x27\x1c"),
    "rar": (0, b"Rar!"),
}
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz", ".7z", ".rar")
ZIPPED = (".pt", ".pth", ".bin", ".npz", ".ckpt", ".keras")  # formats that are zip files within
UNFINISHED = (".part", ".partial", ".crdownload", ".incomplete", ".download", ".aria2", ".tmp")
POINTER = b"version https://git-lfs"
ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "manifest.ocdbt", "commit_success.txt", ".zarray")
ORBAX_PARTS = ("manifest.ocdbt", "_CHECKPOINT_METADATA", "d", "ocdbt.process_0")
LEVELS = 5  # looked up and down
MOST_FOLDERS = 2000  # looked into
REPOS = {
    "awq": "a converted repo (AWQ)",
    "compressed-tensors": "a repo in compressed-tensors format",
    "gguf": "a folder of GGUF files",
    "mlx": "a repo in MLX's format",
}
SOURCES = ("flax", "gguf", "awq", "compressed-tensors")  # kinds of what can be converted
SHOWN = 3


def first_bytes(path: Path, count: int = 512) -> bytes:
    """Of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def is_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large one."""
    return path.is_file() and first_bytes(path, len(POINTER)) == POINTER


def archive_kind(path: Path) -> str | None:
    """`gzip`, `zip`, `tar`, ... for an archive, None for any other file."""
    start = first_bytes(path)
    for kind, (offset, magic) in ARCHIVES.items():
        if start[offset : offset + len(magic)] == magic:
            return None if kind == "zip" and path.suffix in ZIPPED else kind
    return None


def unpacking(path: Path) -> str:
    """What to type to unpack an archive into a folder beside it."""
    name = path.name
    for ending in sorted(ARCHIVE_ENDINGS, key=len, reverse=True):
        name = name.removesuffix(ending)
    folder = path.with_name(name if name != path.name else f"{name}-unpacked")
    made, file = shlex.quote(str(folder)), shlex.quote(str(path))
    if archive_kind(path) == "zip":
        return f"unpack it (unzip {file} -d {made}) and give {folder}"
    return f"unpack it (mkdir {made} && tar -xf {file} -C {made}) and give {folder}"


@dataclass(frozen=True)
class Thing:
    """What a path is, in words that follow "is", and what to do about it where that does not depend on the option."""

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def identify(path: Path) -> Thing:
    """What an existing path is."""
    return _identify_folder(path) if path.is_dir() else _identify_file(path)


def _identify_file(path: Path) -> Thing:
    start, name = first_bytes(path), path.name
    if not start:
        return Thing("an empty file", "download it again")
    if is_pointer(path):
        return Thing("a git-lfs pointer, not the file itself", "type `git lfs pull` in its folder")
    if name.endswith(UNFINISHED):
        return Thing("the beginning of a file", "it is still being downloaded: wait for it, or download it again")
    if kind := archive_kind(path):
        return Thing(f"an archive ({kind})", unpacking(path))
    if name in ORBAX_FILES or path.parent.name == "d":
        return Thing("a file of an Orbax checkpoint, not its folder")
    if start.startswith(b"GGUF"):
        return Thing("a GGUF file")
    if name == "tokenizer.model" or path.suffix == ".spm":
        return Thing("a SentencePiece tokenizer")
    if path.suffix == ".safetensors":
        return Thing("a safetensors file")
    if path.suffix in (*ZIPPED, ".h5", ".msgpack"):
        return Thing(f"a file of weights in another format ({path.suffix})")
    return Thing("a JSON file" if path.suffix == ".json" else "a file")


def _identify_folder(path: Path) -> Thing:
    names = sorted(child.name for child in path.iterdir())
    if not names:
        return Thing("an empty folder")
    if (path / "_METADATA").is_file():
        return Thing("a Flax checkpoint (Orbax)")
    if (path / ".partial").is_dir() or ".published" in names:
        return Thing("a folder with an unfinished conversion", "repeat the command that began it")
    if kind := repo_kind(path):
        return Thing(REPOS.get(kind, f"a Hugging Face repo ({kind})"))
    if unfinished := [name for name in names if name.endswith(UNFINISHED) or ".orbax-checkpoint-tmp" in name]:
        return Thing(f"a folder that is still being filled ({unfinished[0]})", "wait for it, or download it again")
    if archives := [name for name in names if (path / name).is_file() and archive_kind(path / name)]:
        return Thing(f"a folder with an archive in it ({archives[0]})", unpacking(path / archives[0]))
    if any(name in names for name in ORBAX_PARTS):
        return Thing("an Orbax checkpoint without its _METADATA file", "it is incomplete: download it again")
    if weights := [name for name in names if name.endswith((*ZIPPED, ".h5", ".msgpack", ".safetensors"))]:
        return Thing(f"a folder of weights in another format ({weights[0]})")
    more = ", ..." if len(names) > SHOWN else ""
    return Thing(f"a folder of other things ({', '.join(names[:SHOWN])}{more})")


def repo_kind(path: Path) -> str | None:
    """`awq`, `compressed-tensors`, `gguf`, `mlx`; another repo's quantization or model type; None: no repo."""
    if (path / "config.json").is_file():
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            method = (config.get("quantization_config") or {}).get("quant_method")
            if config.get("quantization"):  # MLX's own word
                return "mlx"
            return str(method or config.get("model_type") or "of no known model type")
        except (OSError, ValueError, AttributeError):
            return "config.json unreadable"
    if any(path.glob("*.gguf")):
        return "gguf"
    return None


def source_kind(path: Path) -> str:
    """The kind of source that an existing path is, one of `SOURCES`; `flax` also for what is none.

    The finder of Flax checkpoints then says what it is instead.
    """
    if (path / "_METADATA").is_file():
        return "flax"
    if path.is_file():
        return "gguf" if first_bytes(path).startswith(b"GGUF") else "flax"
    kind = repo_kind(path)
    if kind not in SOURCES and any(path.glob("*.gguf")):  # often the config.json of the model lies beside
        return "gguf"
    return kind if kind in SOURCES else "flax"


def is_tower(name: str) -> bool:
    """Whether a GGUF file is named as that of a vision tower."""
    return "mmproj" in name.rpartition("/")[2].lower()


def first_part(name: str) -> str:
    """The name of the first file of a split GGUF model; the name itself if it is not that of a part."""
    match = PART.fullmatch(name)
    return f"{match[1]}-00001-of-{match[3]}.gguf" if match else name


def below(path: Path, name: str, levels: int = LEVELS) -> list[Path]:
    """Folders below a folder that hold a file of this name, the nearest first; hidden ones are not looked into."""
    found, level, looked = [], [path], 0
    for _ in range(levels):
        level = [child for folder in level for child in _folders(folder)][: MOST_FOLDERS - looked]
        looked += len(level)
        found += [folder for folder in level if (folder / name).is_file()]
    return found


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def above(path: Path, name: str) -> Path | None:
    """The nearest folder above a path, a few levels up, that holds a file of this name."""
    parents = path.resolve().parents[:LEVELS]
    return next((parent for parent in parents if (parent / name).is_file()), None)


def kaggle_reference(given: str) -> str | None:
    """What --checkpoint takes for a handle or an address of Kaggle's; None for what looks like neither."""
    bare = re.sub(r"^kaggle:/*", "", given.strip(), flags=re.IGNORECASE)
    name = re.sub(r"^(https?:/+)?(www\.)?kaggle\.com/", "", bare, flags=re.IGNORECASE)
    address = name != bare
    name = name.split("?")[0].split("#")[0].strip("/")
    name = name.removeprefix("models/").removeprefix("api/v1/models/").removesuffix("/download")
    if name.lower().startswith(GEMMA):
        variation, _, version = name[len(GEMMA) :].partition("/")
        return PREFIX + (variation if not version else name)
    if (address or given.lower().startswith(PREFIX)) and name.count("/") >= 3:
        return PREFIX + name
    if address:
        return EXAMPLE
    plain = name.lower().replace("gemma-3", "gemma3").replace("_", "-").split("/")[-1].removesuffix("-awq")
    if re.fullmatch(r"gemma3-\d+[bm]-(it|pt)(-qat)?(-int4)?(-flax)?", plain):
        return PREFIX + nearest_name(plain.replace("-qat", "").replace("-flax", ""))
    return None


def nearest_name(name: str) -> str:
    """Of Google's INT4 checkpoints the one whose name is most like this, `it` unless it says `pt`."""
    variant = "pt" if re.search(r"\bpt\b", name.lower()) else "it"
    names = [google for google in GOOGLES if f"-{variant}-" in google]
    return next(iter(get_close_matches(name.lower(), names, n=1, cutoff=0.5)), names[-1])


def hub_id(given: str) -> str | None:
    """`owner/name` of a Hub id or web address; None for what looks like neither, or starts with a folder that exists.

    A Path makes one slash of the two of an address.
    """
    match = re.match(r"^(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", given.strip())
    if match:
        return match[1]
    if len(Path(given).parts) > 1 and Path(given).parent.is_dir():
        return None
    return given if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) else None


def nowhere(given: str) -> str:
    """What to say of a path that does not exist: `no such folder`, and what may be meant."""
    path = Path(given)
    if given.startswith("~") and path.expanduser().exists():
        return f"no such folder; the shell left ~ as it is: give {path.expanduser()}"
    if re.match(r"^\w{2,}:/", given):
        return "no such folder; a web address is not downloaded: download it, and give the folder"
    parent = path.parent
    if parent.is_dir():
        try:
            names = [child.name for child in parent.iterdir()]
        except OSError:
            names = []
        if near := get_close_matches(path.name, names, n=1, cutoff=0.6):
            return f"no such folder; is {parent / near[0]} meant?"
    return "no such folder"
