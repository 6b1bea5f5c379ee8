"""What a process reads from its environment: waiting threads, proxies, users, encodings."""

import functools
import http.server
import os
import subprocess
import sys
import threading

import pytest

from pruneflow.process_environment import complete_environment

COMPLETE = "from pruneflow.process_environment import complete_environment as c; c()\n"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run code in a new process after `complete_environment`."""
    left = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "NO_PROXY", "no_proxy", "PYTHONUTF8")
    inherited = {key: value for key, value in os.environ.items() if key not in left}
    command = [sys.executable, "-c", COMPLETE + code]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "9"}, ["None", "9"]),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_decides(given, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    done = python(f"import os; print(*map(os.environ.get, {names}))", **given)
    assert done.stdout.decode().split() == expected


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_server_of_this_machine_is_never_reached_through_a_proxy(tmp_path, library):
    (tmp_path / "index.html").write_text("here")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        nowhere = {f"{name}_proxy": "http://192.0.2.1:9" for name in ("http", "https", "all")}
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.server_port}"
            done = python(f"import {library}; print({library}.get({url!r}).text)", **nowhere)
            assert done.stdout == b"here\n", done.stderr
        server.shutdown()


def test_hosts_that_the_user_names_stay_without_a_proxy():
    code = "import urllib.request as u; print(*[u.proxy_bypass(h) for h in ('a.b', 'c.d', '::1')])"
    done = python(code, NO_PROXY="a.b", no_proxy="c.d", http_proxy="http://192.0.2.1:9")
    assert "False" not in done.stdout.decode()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_user_without_an_entry_in_passwd_has_a_name():
    without = {"LOGNAME": "", "USER": "", "LNAME": "", "USERNAME": ""}
    code = "import os; os.setuid(54321)\n" + COMPLETE + "import getpass; print(getpass.getuser())"
    done = python(code, **without)
    assert done.stdout.decode().split() == ["uid-54321"]


def test_characters_that_the_terminal_cannot_show_are_escaped():
    done = python("print('\u00d7 1.2 \u2212')", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout) == (0, b"\xd7 1.2 \\u2212\n")


def test_variables_that_lead_results_elsewhere_are_removed_and_named(monkeypatch):
    for name in ("MLFLOW_RUN_ID", "GIT_DIR", "PREFECT_API_URL", "no_proxy"):
        monkeypatch.setenv(name, "http://elsewhere")
    removed = complete_environment()
    assert removed == {
        "MLFLOW_RUN_ID": "results are always a new run",
        "GIT_DIR": "the workspace's own repository is used",
    }
    assert not removed.keys() & os.environ.keys()
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere"


def test_the_command_line_says_what_it_ignores():
    command = [sys.executable, "-m", "flows.cli", "--help"]
    environment = {**os.environ, "MLFLOW_RUN_ID": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "MLFLOW_RUN_ID is ignored: results are always a new run\n" in done.stderr
