"""Run an emulator of Google Cloud Storage in a thread, with what gcp-storage-emulator lacks."""

import contextlib
import datetime
import functools
import http.server
import json
import logging
import threading
from typing import ClassVar

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


@contextlib.contextmanager
def run_emulator():
    """Yield (environment variables for clients, the emulator's storage)."""
    for name in ("api", "gcp_storage_emulator"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    storage = _Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": 0}
    with _Server(("127.0.0.1", 0), functools.partial(_Handler, storage)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield (
            {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "FSSPEC_GCS_TOKEN": "anon",
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
                "GOOGLE_CLOUD_PROJECT": "project",
            },
            storage,
        )
        server.shutdown()


class _ExistsError(Exception):
    pass


class _Storage(Storage):
    """Files in memory.

    Attributes:
      history: What the bucket held after each change, if it is a list. The last item is the current state.
      on_write: Function that is called with the name of each file that was written.
      refused: The status with which requests are answered, by a part of their URL.
      is_new_required: Whether the current request fails if the file exists.
    """

    history = None
    on_write = staticmethod(lambda name: None)
    refused: ClassVar = {"/b/anonymous": 401, "/b/forbidden": 403}
    is_new_required = False

    def create_file(self, bucket_name, file_name, *args):
        if self.is_new_required and file_name in self.objects.get(bucket_name, {}):
            raise _ExistsError
        super().create_file(bucket_name, file_name, *args)
        self.on_write(file_name)

    def patch_object(self, bucket_name, file_name, file_obj):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        super().patch_object(bucket_name, file_name, file_obj | {"updated": now})

    def _write_config_to_file(self):  # called after each change
        if self.history is not None:
            self.history.append(({name: dict(files) for name, files in self.objects.items()}, dict(self._store._files)))

    def go_back_to(self, state):
        self.objects, self._store._files = {name: dict(files) for name, files in state[0].items()}, dict(state[1])


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients may hang up, and some are killed


class _Handler(RequestHandler):
    lock = threading.Lock()

    def parse_request(self):
        if not super().parse_request():
            return False
        status = next((self.storage.refused[part] for part in self.storage.refused if part in self.path), 0)
        if status:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._refuse(status, "The caller may not do this")
        return not status

    def _refuse(self, status, message):
        content = json.dumps({"error": {"code": status, "message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _one_at_a_time(method):
    def call(self):
        with _Handler.lock:
            self.storage.is_new_required = "ifGenerationMatch=0" in self.path
            try:
                method(self)
            except _ExistsError:
                self._refuse(412, "The file exists")

    return call


for _name in ("do_GET", "do_POST", "do_PUT", "do_DELETE", "do_PATCH"):
    setattr(_Handler, _name, _one_at_a_time(getattr(RequestHandler, _name)))
