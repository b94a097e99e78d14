"""Kaggle's door, against a fake Kaggle server on loopback; and the Hub's, against a fake API.

Run: pytest tests/conversion/source/test_kaggle.py
"""

import errno
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import kagglehub
import kagglesdk.kaggle_env
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

import convert_flax
from conversion.commands.plan import variant_of
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny

NAME = "gemma3-tiny-it-int4"


class FakeKaggle(BaseHTTPRequestHandler):
    """The three calls of kagglehub's model download. `server.status` makes every answer an error."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        call = self.path.rsplit("/", 1)[1]
        self.server.calls.append((self.path, request))
        files = {path.relative_to(self.server.folder).as_posix(): path for path in self.server.folder.rglob("*")}
        files = {name: path for name, path in files.items() if path.is_file()}
        if self.server.status != 200:
            self._answer(json.dumps({"message": "no"}).encode())
        elif call == "GetModelInstance":
            self._answer(json.dumps({"slug": NAME, "versionNumber": 3}).encode())
        elif call == "ListModelInstanceVersionFiles":
            self._answer(json.dumps({"files": [{"name": name} for name in files], "nextPageToken": ""}).encode())
        elif call == "DownloadModelInstanceVersion":
            self._answer(files[request["path"]].read_bytes())
        else:
            self.send_error(404)

    def _answer(self, body):
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What Kaggle's archive unpacks to: a checkpoint folder, and tokenizer.model beside it."""
    folder = tmp_path_factory.mktemp("archive")
    save_tree(tiny.make_tree(tiny.text_config()), folder / NAME)
    tiny.write_config(tiny.text_config(), folder.parent / "config.json")
    return folder


@pytest.fixture
def kaggle(archive, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeKaggle)
    server.folder, server.status, server.calls = archive, 200, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, kagglesdk.kaggle_env.KaggleEnv.TEST, endpoint)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef0123456789abcdef")
    yield server
    server.shutdown()
    server.server_close()


def _convert(archive, output):
    return tiny.run(f"kaggle:{NAME}", output, archive.parent / "config.json", "--dtype", "float32")


def test_a_checkpoint_from_kaggle(kaggle, archive, tmp_path):
    assert _convert(archive, tmp_path / "repo") == 0
    config = tiny.text_config()
    found, expected = tiny.read_back(tmp_path / "repo"), tiny.expected(tiny.make_tree(config), config)
    assert set(found) == set(expected)
    assert all((found[name] == values).all() for name, values in expected.items())
    path, request = kaggle.calls[0]
    assert path.endswith("/models.ModelApiService/GetModelInstance")
    assert (request["ownerSlug"], request["modelSlug"], request["instanceSlug"]) == ("google", "gemma-3", NAME)


@pytest.mark.parametrize(
    ("status", "credentials", "said"),
    [
        (403, True, "accept Gemma's licence at https://www.kaggle.com/models/google/gemma-3"),
        (403, False, "no Kaggle credentials were found"),
        (401, False, "no Kaggle credentials were found"),
        (401, True, "does not accept the credentials"),
        (404, True, "no such model or version"),
        (500, True, "Kaggle answered with status 500"),
    ],
)
def test_refusals_in_plain_words(kaggle, archive, tmp_path, capsys, monkeypatch, status, credentials, said):
    kaggle.status = status
    if not credentials:
        monkeypatch.delenv("KAGGLE_USERNAME")
        monkeypatch.delenv("KAGGLE_KEY")
    assert _convert(archive, tmp_path / "repo") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"convert_flax: error: kaggle:{NAME}: ")
    assert said in error
    assert not (tmp_path / "repo").exists()


def test_kaggle_out_of_reach(kaggle, archive, tmp_path, capsys):
    kaggle.shutdown()
    kaggle.server_close()
    assert _convert(archive, tmp_path / "repo") == 2
    assert "Kaggle cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "float16"], "Gemma 3 overflows float16"),
        (["--config", "nowhere.json"], "--config nowhere.json: no such file"),
        (["--tokenizer", "nowhere"], "no such folder"),
        (["--source-hashes", "nowhere"], "no such file"),
        (["--variant", "pt"], f"--variant pt: kaggle:{NAME} is it"),
        (["--output", "/dev/null"], "is a file"),
        (["--output", "/dev/null", "--format", "gguf"], "is a file"),
    ],
)
def test_cheap_mistakes_are_found_before_the_download(kaggle, tmp_path, capsys, options, said):
    words = ["--checkpoint", f"kaggle:{NAME}", "--output", str(tmp_path / "repo"), *options]
    assert tiny.command_line(words) == 2
    assert said in capsys.readouterr().err
    assert not kaggle.calls


@pytest.mark.parametrize(
    ("asked", "checkpoint", "variant"),
    [
        (None, "kaggle:gemma3-27b-pt-int4", "pt"),
        (None, "kaggle:google/gemma-3/flax/gemma3-27b-it-int4/1", "it"),
        (None, "folder-pt-int4", None),  # the source itself decides
        ("pt", "kaggle:gemma3-27b-pt-int4", "pt"),
        ("pt", "folder", "pt"),
    ],
)
def test_the_variant_follows_the_handle(asked, checkpoint, variant):
    assert variant_of(asked, checkpoint) == variant


def test_a_disk_that_the_download_fills(kaggle, archive, tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kagglehub, "model_download", full)
    assert _convert(archive, tmp_path / "repo") == 2
    error = capsys.readouterr().err
    assert f"cannot be stored in {tmp_path / 'cache'} (No space left on device)" in error
    assert "KAGGLEHUB_CACHE" in error


def test_push_to_hub(archive, tmp_path, monkeypatch, capsys):
    uploads = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, private, exist_ok: uploads.append((repo_id, private))
    )

    def upload_folder(self, *, folder_path, repo_id, commit_message):
        uploads.append(sorted(path.name for path in Path(folder_path).iterdir()))
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    config = archive.parent / "config.json"
    assert tiny.run(archive, tmp_path / "repo", config, "--push-to-hub", "someone/gemma") == 0
    assert uploads[0] == ("someone/gemma", True)
    assert uploads[1] == sorted(path.name for path in (tmp_path / "repo").iterdir())
    assert "https://hub/someone/gemma/commit/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            HfHubHTTPError(
                "401 Unauthorized", response=httpx.Response(401, request=httpx.Request("POST", "http://hub"))
            ),
            "401 Unauthorized",
        ),
        (HTTPError(""), "HTTPError"),
        (RuntimeError("Data processing error: the connection broke\nand more"), "Data processing error"),
    ],
)
def test_push_refused(archive, tmp_path, monkeypatch, capsys, error, reason):
    def refuse(self, repo_id, private, exist_ok):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    config = archive.parent / "config.json"
    assert tiny.run(archive, tmp_path / "repo", config, "--push-to-hub", "someone/gemma") == 2
    assert f"is complete, but was not uploaded to someone/gemma: {reason}" in capsys.readouterr().err
    assert convert_flax.main(["verify", str(tmp_path / "repo")]) == 0
