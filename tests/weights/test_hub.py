"""Tests for downloads, with a local HTTP server in place of the Hugging Face hub."""

import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from deeplab_jax.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"some weights"


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        exists = self.path in ("/timm/resnet18/resolve/main/pytorch_model.bin", "/timm/resnet18/resolve/v2/model.safetensors")
        self.send_response(200 if exists else 404)
        if exists:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith("/timm/resnet18/") else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if exists and self.command == "GET":
            self.wfile.write(CONTENT)

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


def run_local_file(endpoint, cache, *sources):
    """Call `local_file` for each source in a new process, and return the paths or error messages.

    A new process is needed because the hub client reads its settings on import.
    """
    code = """
import sys
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.hub import local_file
for source in sys.argv[1:]:
    try:
        print(local_file(source))
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
    assert hub.local_file("a/b.pth") == "a/b.pth"


def test_files_are_downloaded_once_and_then_found_offline(server, tmp_path):
    plain, missing = run_local_file(server, tmp_path / "a", "hf:timm/resnet18", "hf:timm/nothing")
    assert pathlib.Path(plain).read_bytes() == CONTENT
    assert plain.endswith("pytorch_model.bin")
    assert missing.startswith("`hf:timm/nothing` does not exist")
    (pinned,) = run_local_file(server, tmp_path / "b", "hf:timm/resnet18@v2")
    assert pinned.endswith("model.safetensors")
    assert run_local_file("", tmp_path / "a", "hf:timm/resnet18") == [plain]
    assert run_local_file("", tmp_path / "b", "hf:timm/resnet18@v2") == [pinned]


def test_every_download_error_is_one_line(server, tmp_path):
    offline, invalid, no_owner = run_local_file("", tmp_path, "hf:timm/resnet18", "hf:a/b--c..d", "hf:nonsense")
    assert offline.startswith("`hf:timm/resnet18` is not in the cache, and the hub cannot be reached")
    assert invalid.startswith("`hf:a/b--c..d` is not a repository. Use hf:OWNER/NAME")
    assert no_owner.startswith("`hf:nonsense` is not a repository. Use hf:OWNER/NAME")
    (no_file,) = run_local_file(server, tmp_path, "hf:timm/resnet18@v3")
    assert no_file.startswith("`hf:timm/resnet18@v3` contains neither model.safetensors nor pytorch_model.bin")
