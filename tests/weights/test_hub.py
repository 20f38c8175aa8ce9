"""A local HTTP server stands in for the Hugging Face hub."""

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
        found = self.path in ("/timm/resnet18/resolve/main/pytorch_model.bin", "/timm/resnet18/resolve/v2/model.safetensors")
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith("/timm/resnet18/") else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if found and self.command == "GET":
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


def fetched(endpoint, cache, *sources):
    """What a process of its own gets, a line a source: the hub's settings are read when it is imported."""
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


def test_a_path_is_itself():
    assert hub.local_file("a/b.pth") == "a/b.pth"


def test_files_are_fetched_once_and_then_found_offline(server, tmp_path):
    plain, nothing = fetched(server, tmp_path / "a", "hf:timm/resnet18", "hf:timm/nothing")
    assert pathlib.Path(plain).read_bytes() == CONTENT
    assert plain.endswith("pytorch_model.bin")
    assert nothing.startswith("`hf:timm/nothing` does not exist")
    (pinned,) = fetched(server, tmp_path / "b", "hf:timm/resnet18@v2")
    assert pinned.endswith("model.safetensors")
    assert fetched("", tmp_path / "a", "hf:timm/resnet18") == [plain]
    assert fetched("", tmp_path / "b", "hf:timm/resnet18@v2") == [pinned]


def test_what_cannot_be_fetched_is_one_line(server, tmp_path):
    offline, wrong, bare = fetched("", tmp_path, "hf:timm/resnet18", "hf:a/b--c..d", "hf:nonsense")
    assert offline.startswith("`hf:timm/resnet18` is not in the cache and the hub cannot be reached")
    assert wrong.startswith("`hf:a/b--c..d` is no repository: write hf:OWNER/NAME")
    assert bare.startswith("`hf:nonsense` is no repository: write hf:OWNER/NAME")
    (neither,) = fetched(server, tmp_path, "hf:timm/resnet18@v3")
    assert neither.startswith("`hf:timm/resnet18@v3` holds neither model.safetensors nor pytorch_model.bin")
