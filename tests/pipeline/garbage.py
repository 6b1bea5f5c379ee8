"""What `pruneflow gc` finds and removes in the current workspace, and what DVC's cache holds."""

import json
from pathlib import Path

import yaml

from pruneflow.settings.pipeline import load_settings
from tasks.gc import survey
from tasks.gc.removable import Removable

CACHE = Path(".dvc/cache/files/md5")


def found(keep_versions: int = 0) -> list[Removable]:
    with survey.survey(load_settings(), keep_versions) as seen:
        return seen.found


def names(kind: str, things: list[Removable]) -> list[str]:
    return [thing.name for thing in things if thing.kind == kind]


def collect(keep_versions: int = 0) -> list[Removable]:
    with survey.survey(load_settings(), keep_versions) as seen:
        survey.remove(seen.found)
        return seen.found


def cached() -> set[str]:
    return {path.parent.name + path.name for path in CACHE.glob("??/*")}


def named_by(lock: str, without: str | None = None) -> set[str]:
    """The hashes that a dvc.lock names, read without DVC; optionally without those of one stage."""
    hashes: set[str] = set()
    for name, stage in yaml.safe_load(lock)["stages"].items():
        for out in stage["outs"] if name != without else ():
            hashes.add(out["md5"])
            if out["md5"].endswith(".dir"):
                listed = json.loads((CACHE / out["md5"][:2] / out["md5"][2:]).read_text())
                hashes |= {entry["md5"] for entry in listed}
    return hashes
