"""Servers for tests: started on loopback, waited for, and ended with all their children."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 180.0
END_SECONDS = 20.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server says that it is well at this address."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_until(condition: Callable[[], object], seconds: float = START_SECONDS) -> bool:
    """Whether a condition comes to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


@contextmanager
def serving(
    command: list[str],
    ready: Callable[[], bool],
    log: Path,
    end: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> Iterator[None]:
    """Run a server until the block ends.

    Args:
        command: what to run; its children end with it.
        ready: whether it answers.
        log: file for what it says, shown when it does not start.
        end: the signal that asks it to end.
        options: of `subprocess.Popen`, e.g. ``env`` and ``cwd``.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        try:
            _wait(process, ready, log)
            yield
        finally:
            _end(process, end)


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """The server of the current directory's production; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    ping = f"{address}/ping"
    with serving(command, lambda: answers(ping), Path("served.log"), env=environment):
        yield address


def ask(address: str, body: Any) -> tuple[int, Any]:
    """POST a body to /invocations; returns the status and the answer."""
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _wait(process: "subprocess.Popen[bytes]", ready: Callable[[], bool], log: Path) -> None:
    wait_until(lambda: ready() or process.poll() is not None)
    if process.poll() is not None or not ready():
        pytest.fail(f"{process.args!r} did not start:\n{log.read_text()}")


def _end(process: "subprocess.Popen[bytes]", end: signal.Signals) -> None:
    """Ask the process group to end, as Ctrl-C does, and then end what is left of it."""
    for each in (end, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
            process.wait(timeout=END_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    process.wait()


@dataclass
class Webhook:
    """A server that keeps what it is sent, and answers as it is told."""

    url: str
    heard: list[dict[str, Any]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Webhook]:
    """A webhook on loopback, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.heard.append({"path": self.path, **json.loads(body)})
            self.send_response(hook.answers.pop(0) if hook.answers else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        hook = Webhook(f"http://127.0.0.1:{listener.server_port}/services/secret")
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield hook
        finally:
            listener.shutdown()
