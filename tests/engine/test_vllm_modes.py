"""What the engine asks of vLLM's server, and what it makes of the answers, with a stand-in for the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecap.engine.vllm_modes import OnlineServer
from moecap.errors import EngineError

SERVER = r"""
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

name, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--served-model-name", "--port"))

class Answers(BaseHTTPRequestHandler):
    in_use = False  # blocks of the KV cache, by what can't be put off

    def do_GET(self):
        self.answer(200, {"data": [{"id": name}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/collective_rpc":
            Answers.in_use = True
            self.answer(200, {"results": [None]})
        elif self.path.startswith("/reset_prefix_cache"):
            raises = Answers.in_use and "reset_running_requests=true" in self.path
            self.answer(500 if raises else 200, {})

    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

HTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()
"""
"""As vLLM 0.24: a reset of caches in use is answered like one that was done, unless what runs is to be put off too."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OnlineServer]:
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    started = OnlineServer([sys.executable, str(program)], os.environ, tmp_path / "log")
    yield started
    started.end()


def test_a_cache_that_was_not_emptied_is_an_error(server: OnlineServer) -> None:
    server.flush()
    assert server.call("hold") == [None]
    with pytest.raises(EngineError, match="vLLM did not do /reset_prefix_cache"):
        server.flush()
