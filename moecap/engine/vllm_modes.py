"""The two ways in which a vLLM engine is served, behind one small interface: a server, and a batch program.

Both run as a process group of their own. `OnlineServer` is vLLM's OpenAI-compatible server, loaded through HTTP by
`openai_client`. `OfflineBatch` drives the engine's steps from its own program (`vllm_offline`), without a server.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from moecap.engine.openai_client import Driven, drive
from moecap.engine.process import ProcessGroup
from moecap.errors import EngineError
from moecap.records import LoadSpec, Request

POLL_S = 0.2
ANSWER_S = 900.0
"""For a call that isn't serving: the end of a long recording takes a while."""
GONE_POLLS = 10
"""Answers in a row by which a server says that it is not ready, after which it isn't waited for."""
REQUEST_S = 24 * 3600.0
"""For one request: the deadline of a run is kept by who asked for the run."""


class Mode(ABC):
    """A started vLLM."""

    def __init__(self, processes: ProcessGroup) -> None:
        self.processes = processes

    @abstractmethod
    def call(self, method: str, *args: str) -> list[Any]:
        """A method of every worker, and its answers (JSON values): of a server with several replicas, those of the
        first replica's workers. EngineError when one of any replica fails."""

    @abstractmethod
    def flush(self) -> None:
        """Forget every cached prefix."""

    @abstractmethod
    def serve(self, requests: Sequence[Request], load: LoadSpec) -> Driven:
        """Until all are done."""

    def check(self) -> None:
        """EngineError with the cause when it is gone."""
        code = self.processes.exit_code
        if code is not None:
            raise EngineError(f"vLLM ended with code {code}: {self.processes.cause}")

    def end(self) -> None:
        """All its processes."""
        self.processes.end()


class OnlineServer(Mode):
    """`vllm serve` on a port of this host."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, num_replicas: int = 1
    ) -> None:
        """Wait until it is ready. EngineError with the cause when it ends before."""
        self._replica = 0 if num_replicas == 1 else None  # it doesn't say which one answers
        # a name of its own, as a port that was free may be another server's by now
        self.model, port = f"moecap-{secrets.token_hex(4)}", _free_port()
        self._url = f"http://127.0.0.1:{port}"
        serve = [*command, "--served-model-name", self.model, "--host", "127.0.0.1", "--port", str(port)]
        # the calls on workers and caches are part of what vLLM serves to developers only
        super().__init__(ProcessGroup(serve, {**environment, "VLLM_SERVER_DEV_MODE": "1"}, log))
        while not self._is_ready():
            self.check()
            time.sleep(POLL_S)
        served = [one["id"] for one in json.loads(self._get("/v1/models"))["data"]]
        if served != [self.model]:
            raise EngineError(f"another server answers at {self._url}: it serves {served}")

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._url

    def call(self, method: str, *args: str) -> list[Any]:
        """See Mode."""
        return list(json.loads(self._post("/collective_rpc", {"method": method, "args": args}))["results"])

    def flush(self) -> None:
        """See Mode. Plainly asked to, vLLM 0.24 doesn't tell that it could not, and of several replicas only the first
        one's answer is told; asked to put off what still runs, it can only succeed or raise, in every replica."""
        self._post("/reset_prefix_cache?reset_running_requests=true", {})

    def serve(self, requests: Sequence[Request], load: LoadSpec) -> Driven:
        """See Mode; streamed, by the client."""
        return drive(self._url, self.model, requests, load, timeout_s=REQUEST_S, replica=self._replica)

    def _is_ready(self) -> bool:
        try:
            with _open(urllib.request.Request(f"{self._url}/health"), timeout=POLL_S * 10) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """EngineError when the server is gone, or says for a while that its engine is: it would never answer then."""
        return self._answer(path, urllib.request.Request(
            f"{self._url}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        ))  # fmt: skip

    def _get(self, path: str) -> bytes:
        return self._answer(path, urllib.request.Request(f"{self._url}{path}"))

    def _answer(self, path: str, request: urllib.request.Request) -> bytes:
        answers: Queue[bytes | OSError] = Queue()
        threading.Thread(target=_ask, args=(request, answers), daemon=True).start()
        unready = 0
        while unready < GONE_POLLS:
            with suppress(Empty):
                answer = answers.get(timeout=POLL_S)
                if isinstance(answer, bytes):
                    return answer
                time.sleep(POLL_S)  # a server that is going down takes a moment
                self.check()
                raise EngineError(f"vLLM did not do {path}: {answer}; {self.processes.cause}") from answer
            self.check()
            unready = 0 if self._is_ready() else unready + 1
        raise EngineError(f"vLLM's server says that its engine is gone: {self.processes.cause}")


class OfflineBatch(Mode):
    """`moecap.engine.vllm_offline`, which answers through a pipe."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Wait until it is ready. EngineError with the cause when it ends before."""
        self._connection, theirs = Pipe()
        with theirs:
            end = theirs.fileno()
            super().__init__(ProcessGroup([*command, str(end)], environment, log, (end,)))
        self._ask("ready")

    def call(self, method: str, *args: str) -> list[Any]:
        """See Mode."""
        return list(self._ask("call", method, args))

    def flush(self) -> None:
        """See Mode."""
        if not self._ask("flush"):
            raise EngineError("vLLM did not empty its prefix cache: requests are still in flight")

    def serve(self, requests: Sequence[Request], load: LoadSpec) -> Driven:
        """See Mode; closed loops only."""
        driven = self._ask("serve", tuple(requests), load)
        assert isinstance(driven, Driven)
        return driven

    def end(self) -> None:
        """See Mode."""
        self._connection.close()
        super().end()

    def _ask(self, what: str, *args: Any) -> Any:
        try:
            self._connection.send((what, args))
            while not self._connection.poll(POLL_S):
                self.check()
            answer, value = self._connection.recv()
        except (EOFError, OSError) as error:
            time.sleep(POLL_S)
            self.check()
            raise EngineError(f"vLLM's batch program is gone: {self.processes.cause}") from error
        if answer == "failed":
            raise EngineError(f"vLLM: {value}")
        return value


def _ask(request: urllib.request.Request, answers: Queue[bytes | OSError]) -> None:
    try:
        with _open(request, timeout=ANSWER_S) as answer:
            answers.put(answer.read())
    except OSError as error:  # urllib's own errors are such
        answers.put(error)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Past any proxy: this host is meant."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
