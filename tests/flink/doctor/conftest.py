import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.flink.doctor import Cluster, Host

FOREIGN = ("FLINK_", "CUDA_", "NVIDIA_", "EXTERNALRESOURCE_")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that somebody has, so that nobody else gets it, and on which nobody listens."""
    with socket.socket() as keeper:
        keeper.bind(("localhost", 0))
        yield keeper.getsockname()[1]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Host:
    return with_two_gpus(Host(tmp_path, closed_port), monkeypatch)


@pytest.fixture
def open_host(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Iterator[Host]:
    """A host whose Flink other users can look at: pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield with_two_gpus(Host(Path(folder), closed_port), monkeypatch)


def with_two_gpus(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in os.environ:
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "2")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_COORDINATION_FILE", str(host.ledger))
    return host


@pytest.fixture
def cluster(host: Host) -> Iterator[Cluster]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.get(self.path)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - so it is called there
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        found = Cluster(f"http://localhost:{server.server_port}")
        answers, asked = found.answers, found.asked
        host.settings["rest.port"] = server.server_port
        yield found
        server.shutdown()
