"""Move the alias ``production``: promotion, rollback and restore, each tested and recorded.

A move takes two alias writes and two smoke tests. Before the first write, the move and the current
aliases are saved in a tag of the registered model; when the move is done, it becomes an entry of
the model's history. A tag that is found later belongs to a move that was killed before its model
passed the second smoke test; that move is undone. Only one move is made at a time (`lock.py`).
"""

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import mlflow
from mlflow import MlflowClient

from pruneflow.artifacts import sha256_json
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.judge.gates import Decision
from pruneflow.records import parse_record
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry import versions
from tasks.registry.lock import registry_held
from tasks.registry.registered_model import (
    HISTORY,
    PENDING,
    PREVIOUS,
    PRODUCTION,
    history_of,
    rolled_back_in,
)
from tasks.registry.smoke_test import SmokeError, smoke_tests
from tasks.registry.versions import DECISION_ARTIFACT
from tasks.tracking.location import has_store
from tasks.tracking.store import connect, store_errors

Kind = Literal["promotion", "rollback", "restore"]


@dataclass(frozen=True)
class Approval:
    """Who approves a move, and why; the user who is logged in by default."""

    by: str | None = None
    why: str | None = None

    def facts(self) -> dict[str, str]:
        """Return what the history records."""
        return {"by": self.by or getpass.getuser(), "why": self.why or ""}


NOBODY = Approval()
GATES = Approval("pruneflow run", "accepted by the gates")


@dataclass(frozen=True)
class Move:
    """What a promotion, rollback or restore did to the aliases."""

    version: str
    former: str | None
    changed: bool

    def sentence(self, name: str) -> str:
        """Describe it in one line."""
        if not self.changed:
            return f"version {self.version} of {name} is in production already"
        former = f"; version {self.former} is kept as previous" if self.former else ""
        return f"version {self.version} of {name} is in production{former}"


def promote(
    settings: RegistrySettings, version: str | None = None, approval: Approval = NOBODY
) -> Move:
    """Put a version into production, by default the candidate. Safe to repeat.

    The current version becomes ``previous``.

    Raises:
        InputError: there is no such version, ``registry.promotion`` is manual and approval is
            missing, the gates did not accept the version or compared it with a version that is no
            longer in production, its code was not committed, its files changed after registration,
            or it fails the smoke test.
    """
    with _moving(settings) as moves:
        chosen = moves.version(version)
        number = chosen["version"]
        if moves.production == number:
            return moves.none()
        if settings.promotion == "manual" and not approval.by:
            raise InputError(
                f"version {number} needs approval (registry.promotion is manual): "
                f"`pruneflow promote {number} --approved-by NAME`"
            )
        check_accepted(chosen, moves.production)
        if chosen.get("git_dirty") == "true":
            raise InputError(
                f"version {number} was made by code that is not committed: commit it, "
                "then `pruneflow run` and promote again"
            )
        return moves.make("promotion", number, approval)


def promote_accepted(settings: RegistrySettings, version: str) -> Move | None:
    """Put the version that a run just registered into production, even if code is not committed.

    Returns:
        None if the version was rolled back before: only a user can promote it again.

    Raises:
        InputError: as `promote`.
    """
    with _moving(settings) as moves:
        if moves.production == version:
            return moves.none()
        if rolled_back_in(moves.history(), version):
            return None
        check_accepted(moves.version(version), moves.production)
        return moves.make("promotion", version, GATES)


def rollback(settings: RegistrySettings, approval: Approval = NOBODY) -> Move:
    """Swap ``production`` and ``previous``; a second rollback undoes the first.

    Raises:
        InputError: there is no previous version, or it is damaged or fails the smoke test.
    """
    with _moving(settings) as moves:
        if moves.production is None or moves.previous is None:
            raise InputError(
                f"{settings.name} has no previous version to go back to: see `pruneflow status`"
            )
        return moves.make("rollback", moves.previous, approval)


def restore(settings: RegistrySettings, version: str, approval: Approval = NOBODY) -> Move:
    """Put any version that was in production before back into production.

    The gates accepted it then, so their decision is not checked again.

    Raises:
        InputError: there is no such version, it was never in production, or it is damaged or fails
            the smoke test.
    """
    with _moving(settings) as moves:
        number = moves.version(version)["version"]
        if moves.production == number:
            return moves.none()
        if all(entry["version"] != number for entry in moves.history()):
            raise InputError(
                f"version {number} of {settings.name} was never in production: "
                f"`pruneflow promote {number}` puts it there"
            )
        return moves.make("restore", number, approval)


def history(settings: RegistrySettings) -> list[dict[str, Any]]:
    """Return every move, oldest first.

    Returns:
        The ``kind``, ``version``, ``former`` version, ``by``, ``why`` and ``at`` of each move.
    """
    client = connect(settings)
    with store_errors(settings):
        return history_of(versions.registered_model(client, settings.name).tags)


def undo_killed_move(settings: RegistrySettings) -> None:
    """Undo a move that was killed, if there is one."""
    if not has_store(settings):
        return
    client = connect(settings)
    with store_errors(settings):
        pending = PENDING in versions.registered_model(client, settings.name).tags
    if pending:
        with held(settings):
            pass


@contextmanager
def held(settings: RegistrySettings) -> Iterator[None]:
    """Lock the registry, after undoing a killed move."""
    with registry_held(settings):
        if has_store(settings):
            client = connect(settings)
            with store_errors(settings):
                _Moves(client, settings)
        yield


def check_accepted(version: versions.Version, in_production: str | None) -> None:
    """Check the decision that the version's run logged.

    Raises:
        InputError: there is no decision, it is a refusal, it is not the one that the version was
            registered with, or it compared the model with a version that is not in production.
    """
    number = version["version"]
    try:
        stored = versions.read_artifact(version, DECISION_ARTIFACT)
        decision = parse_record(Decision, stored, DECISION_ARTIFACT)
    except DamagedArtifactError:
        raise InputError(
            f"version {number} has no readable decision of the gates: only versions that "
            "`pruneflow run` accepted can be promoted"
        ) from None
    if not decision.accepted:
        raise InputError(f"version {number} was refused by the gates: see its {DECISION_ARTIFACT}")
    if (sha256_json(stored), decision.model) != (
        version.get("decision_digest"),
        version.get("model_digest"),
    ):
        raise InputError(
            f"the decision of version {number} is not the one it was registered with: only "
            "versions that `pruneflow run` accepted can be promoted"
        )
    if any(gate.against == PRODUCTION for gate in decision.gates):
        compared = decision.production.version if decision.production else None
        if compared != in_production:
            raise InputError(
                f"version {number} was compared with {_named(compared)}, and "
                f"{_named(in_production)} is in production now: `pruneflow run` compares it again"
            )


def _named(version: str | None) -> str:
    return "nothing" if version is None else f"version {version}"


class _Moves:
    """The aliases of a registered model, locked for one move."""

    def __init__(self, client: MlflowClient, settings: RegistrySettings) -> None:
        self._client, self._settings, self._name = client, settings, settings.name
        self._undo_what_was_killed()
        aliases = versions.aliases_of(client, self._name)
        self.production, self.previous = aliases.get(PRODUCTION), aliases.get(PREVIOUS)

    def version(self, number: str | None) -> versions.Version:
        return versions.chosen_version(self._client, self._name, number)

    def history(self) -> list[dict[str, Any]]:
        return history_of(self._tags())

    def none(self) -> Move:
        """The requested version is in production already."""
        assert self.production is not None
        return Move(self.production, self.previous, changed=False)

    def make(self, kind: Kind, number: str, approval: Approval) -> Move:
        """Test a version, move production to it, test again, and move back if that fails."""
        with versions.checkpoint(self._settings, number):
            pass  # verifies its files
        entry = {
            "kind": kind,
            "version": number,
            "former": self.production,
            **approval.facts(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        undo = {PRODUCTION: self.production, PREVIOUS: self.previous}
        note = json.dumps({"entry": entry, "undo": undo}, sort_keys=True)
        with smoke_tests(mlflow.get_tracking_uri()) as test:
            with _state_in_error("nothing was changed"):
                test(f"models:/{self._name}/{number}")
            self._set_tag(PENDING, note)
            self._set_alias(PRODUCTION, number)
            if self.production is not None:
                self._set_alias(PREVIOUS, self.production)
            try:
                with _state_in_error("the aliases were moved back"):
                    test(f"models:/{self._name}@{PRODUCTION}")
            except BaseException:  # Ctrl-C as well: it has not passed
                self._undo_what_was_killed()
                raise
        tags = self._tags()
        if tags.get(PENDING) != note:
            raise InputError(
                f"another workspace undid this move of {self._name}: workspaces that share an "
                "MLflow server need the same PREFECT_API_URL to take turns (mlflow/README.md)"
            )
        self._set_tag(
            f"{HISTORY}{len(history_of(tags)) + 1:06d}", json.dumps(entry, sort_keys=True)
        )
        self._client.delete_registered_model_tag(self._name, PENDING)
        return Move(number, self.production, changed=True)

    def _undo_what_was_killed(self) -> None:
        tags = self._tags()
        if PENDING not in tags:
            return
        note = json.loads(tags[PENDING])
        if note["entry"] not in history_of(tags):  # otherwise it was killed at the last write
            for alias, version in note["undo"].items():
                if version is not None:
                    self._set_alias(alias, version)
                elif alias in versions.aliases_of(self._client, self._name):
                    self._client.delete_registered_model_alias(self._name, alias)
        self._client.delete_registered_model_tag(self._name, PENDING)

    def _tags(self) -> dict[str, str]:
        return versions.registered_model(self._client, self._name).tags

    def _set_tag(self, key: str, value: str) -> None:
        self._client.set_registered_model_tag(self._name, key, value)

    def _set_alias(self, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(self._name, alias, version)


@contextmanager
def _state_in_error(state: str) -> Iterator[None]:
    try:
        yield
    except SmokeError as error:
        raise SmokeError(f"{error}: {state}") from None


@contextmanager
def _moving(settings: RegistrySettings) -> Iterator[_Moves]:
    client = connect(settings)
    with registry_held(settings), store_errors(settings):
        yield _Moves(client, settings)
