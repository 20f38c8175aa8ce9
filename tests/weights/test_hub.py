"""Tests for downloads, with a local HTTP server in place of the Hugging Face hub."""

import hashlib
import http.server
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from deeplab_jax.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"some weights"
INDEX = b'{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}'
# The files in each repository and revision. A download asks for the settings at the commit of the weights.
FILES = {
    ("timm/resnet18", "main"): ("pytorch_model.bin",),
    ("timm/resnet18", "v2"): ("model.safetensors",),
    ("user/net", "main"): ("model.safetensors",),
    ("user/net", COMMIT): ("config.json", "preprocessor_config.json"),
    ("user/large", "main"): ("model.safetensors.index.json",),
    ("user/large", COMMIT): ("config.json", "part-1.safetensors", "part-2.safetensors"),
}
REPOSITORIES = {repository for repository, _ in FILES}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        repository, revision, name = re.fullmatch(r"/(.*)/resolve/(\w+)/(.*)", self.path).groups()
        exists = name in FILES.get((repository, revision), ())
        content = INDEX if name.endswith(".index.json") else CONTENT
        self.send_response(200 if exists else 404)
        if exists:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if repository in REPOSITORIES else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if exists and self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run_local_path(endpoint, cache, *sources):
    """Call `local_path` for each source in a new process, and return the paths or error messages.

    A new process is needed because the hub client reads its settings on import.
    """
    code = """
import sys
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.hub import local_path
for source in sys.argv[1:]:
    try:
        print(local_path(source))
    except CheckpointError as error:
        print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "" if endpoint else "1"}
    command = [sys.executable, "-c", code, *sources]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_local_path_is_returned_unchanged():
    assert hub.local_path("a/b.pth") == "a/b.pth"


def list_files(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_files_are_downloaded_once_and_then_found_offline(server, tmp_path):
    plain, missing = run_local_path(server, tmp_path / "a", "hf:timm/resnet18", "hf:timm/nothing")
    assert (pathlib.Path(plain) / "pytorch_model.bin").read_bytes() == CONTENT
    assert missing.startswith("`hf:timm/nothing` does not exist")
    (pinned,) = run_local_path(server, tmp_path / "b", "hf:timm/resnet18@v2")
    assert list_files(pinned) == ["model.safetensors"]
    # The cache remembers that there is no config.json.
    assert run_local_path("", tmp_path / "a", "hf:timm/resnet18") == [plain]
    assert run_local_path("", tmp_path / "b", "hf:timm/resnet18@v2") == [pinned]


def test_settings_and_all_parts_are_downloaded(server, tmp_path):
    folder, large = run_local_path(server, tmp_path, "hf:user/net", "hf:user/large")
    assert list_files(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert list_files(large) == ["config.json", "model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"]
    assert run_local_path("", tmp_path, "hf:user/net", "hf:user/large") == [folder, large]


def test_cached_weights_without_known_settings_are_used_with_a_message(server, tmp_path):
    (folder,) = run_local_path(server, tmp_path, "hf:user/net")
    (pathlib.Path(folder) / "config.json").unlink()
    message, again = run_local_path("", tmp_path, "hf:user/net")
    assert again == folder
    assert message.startswith("config.json of hf:user/net is not in the cache, and the hub cannot be reached")


def test_every_download_error_is_one_line(server, tmp_path):
    offline, invalid, no_owner = run_local_path("", tmp_path, "hf:timm/resnet18", "hf:a/b--c..d", "hf:nonsense")
    assert offline.startswith("`hf:timm/resnet18` is not in the cache, and the hub cannot be reached")
    assert invalid.startswith("`hf:a/b--c..d` is not a repository. Use hf:OWNER/NAME")
    assert no_owner.startswith("`hf:nonsense` is not a repository. Use hf:OWNER/NAME")
    (no_file,) = run_local_path(server, tmp_path, "hf:timm/resnet18@v3")
    assert no_file.startswith("`hf:timm/resnet18@v3` contains neither model.safetensors nor pytorch_model.bin")
