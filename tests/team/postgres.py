"""A PostgreSQL cluster in a temporary folder, with the role and databases of mlflow/README.md."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.servers import serving
from tests.team.shared import PASSWORD, Team

SUPERUSER = "postgres"
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}


@contextmanager
def cluster(team: Team, environment: Mapping[str, str]) -> Iterator[None]:
    """Run PostgreSQL on the team's port until the block ends, and remove all it wrote."""
    programs = _programs()
    owner = _owner()
    # Not below pytest's folder, which is closed to others.
    folder = Path(tempfile.mkdtemp(prefix="pruneflow-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if owner:
            for path in (folder, folder / "password"):
                shutil.chown(path, owner["user"], owner["group"])
        options = {"env": dict(environment), "cwd": folder, **owner}
        _make(programs / "initdb", options)
        command = [str(programs / "postgres"), "-D", "cluster", "-p", str(team.ports["postgres"])]
        for key, value in SETTINGS.items():
            command += ["-c", f"{key}={value}"]
        # After SIGTERM it would wait for its clients to leave.
        with serving(command, lambda: _answers(team), folder / "log", signal.SIGINT, **options):
            _prepare(team)
            yield
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    """Debian keeps the server's programs off the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    for program in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return program.parent
    pytest.fail("there is no PostgreSQL: `make test-team` installs it")


def _owner() -> dict[str, Any]:
    """Who runs it: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def _make(initdb: Path, options: Mapping[str, Any]) -> None:
    arguments = ["--username", SUPERUSER, "--pwfile", "password", "--auth", "scram-sha-256"]
    arguments += ["--encoding", "UTF8", "--no-sync", "-D", "cluster"]
    done = subprocess.run([str(initdb), *arguments], capture_output=True, text=True, **options)
    if done.returncode != 0:
        pytest.fail(f"initdb: {done.stderr}")


def _connect(team: Team) -> Any:
    made = psycopg2.connect(
        host="127.0.0.1",
        port=team.ports["postgres"],
        user=SUPERUSER,
        dbname="postgres",
        password=PASSWORD,
    )
    made.autocommit = True  # databases are not made within transactions
    return made


def _answers(team: Team) -> bool:
    try:
        _connect(team).close()
    except psycopg2.OperationalError:
        return False
    return True


def _prepare(team: Team) -> None:
    with closing(_connect(team)) as connection, connection.cursor() as cursor:
        for statement in team.documented("sql", "CREATE ROLE").splitlines():
            cursor.execute(statement.replace("choose one", PASSWORD))
