"""Sources of calibration text: configs/domains.yaml, and the pins in data/sources.lock."""

import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi

from pruneflow.artifacts import sha256_file, write_json
from pruneflow.data.record_template import TextRecord, Unreadable
from pruneflow.data.source_kinds import KINDS, HubSource, PackageSource, Source
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Reading, package_files, read_lock
from pruneflow.questions.question_set import load_question_sources
from pruneflow.settings.base import check, read_yaml

LOGGER = logging.getLogger(__name__)
HUB_TIMEOUT = 10.0
"""Timeout of requests to the hub."""


@dataclass(frozen=True)
class LockChange:
    """Changes of `data/sources.lock`.

    Attributes:
        added: names of new pins: `PACKAGE/PATH`, `hub:DATASET` or `python`.
        changed: names of pins with a new value.
        removed: names of removed pins.
        unresolved: hub ids without a pin, because the hub did not answer.
    """

    added: list[str]
    changed: list[str]
    removed: list[str]
    unresolved: list[str]


def load_domains(domains_file: Path) -> dict[str, list[Source]]:
    """Read configs/domains.yaml: a mapping of domains, each a list of sources.

    Raises:
        InputError: names the domain, the number of the source in its list, and the invalid key.
    """
    values = read_yaml(domains_file)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(
            f"{domains_file}: must be a mapping of domain names to lists of sources; put a name "
            "such as no or 2024 in quotes, because YAML does not read it as text"
        )
    domains: dict[str, list[Source]] = {}
    for domain, entries in values.items():
        if not isinstance(entries, list):
            raise InputError(
                f"{domains_file}: domain {domain} has no list of sources: add one, or remove it"
            )
        domains[domain] = [
            _parse(entry, f"{domains_file}: domain {domain}, source {number}")
            for number, entry in enumerate(entries, start=1)
        ]
    return domains


def known_domains(names: list[str], domains_file: Path) -> dict[str, list[Source]]:
    """Return the sources of the named domains, in the order of `names`.

    Raises:
        InputError: a domain is not in the file, or has no source there.
    """
    known = load_domains(domains_file)
    for name in names:
        if name not in known:
            raise InputError(
                f"domain {name} is not in {domains_file} (known: {', '.join(sorted(known))}): "
                "add it there, or correct documents.domains"
            )
        if not known[name]:
            raise InputError(f"domain {name} has no source: add one in {domains_file}")
    return {name: known[name] for name in names}


def _parse(entry: Any, where: str) -> Source:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: kind is {kind!r}: use one of {', '.join(sorted(KINDS))}")
    return check(KINDS[kind], entry, where)


def read_source(domain: str, source: Source, reading: Reading) -> Iterator[TextRecord | Unreadable]:
    """Yield the records of one source, in a stable order; an empty record has an empty text.

    An unreadable record is an error, or is yielded if `reading.malformed` is `skip`.

    Raises:
        InputError: the source is missing, has no text, is damaged or does not match its template;
            the message begins with the domain and the source.
    """
    where = f"domain {domain}, source {source.name}"
    skipped, first, empty = 0, "", True
    try:
        for record in source.read(reading):
            if isinstance(record, Unreadable):
                record = replace(record, problem=" ".join(record.problem.split()))
                if reading.malformed == "error":
                    raise InputError(
                        f"{record.place} {record.problem}: {record.fix}, or set "
                        "documents.malformed: skip to drop and count unreadable records"
                    )
                skipped += 1
                first = first or f"{record.place} {record.problem}"
            else:
                empty = empty and not record.text.strip()
            yield record
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except OSError as error:
        raise InputError(
            f"{where}: {error.filename} cannot be read ({error.strerror}): make it readable"
        ) from None
    if empty:
        details = f" ({skipped} skipped; {first})" if skipped else ""
        raise InputError(
            f"{where}: it has no text{details}: correct the source in configs/domains.yaml or "
            "remove it"
        )


def refresh_lock(domains_file: Path, lock_file: Path, lm_eval_dir: Path) -> LockChange:
    """Write `data/sources.lock` with new pins of all sources of domains and evaluation tasks.

    Package files are pinned by sha256, hub ids without a `revision` by their newest commit, and the
    Python installation by its version. If the hub does not answer, an existing pin is kept.

    Raises:
        InputError: a package or a file in it is missing.
    """
    try:
        old = read_lock(lock_file)
    except InputError:
        old = Lock()
    new, change = _resolve(domains_file, lm_eval_dir, old, _newest)
    write_json(lock_file, {"files": new.files, "hub": new.hub, "python": new.python})
    return change


def compare_lock(domains_file: Path, lock_file: Path, lm_eval_dir: Path) -> LockChange:
    """Return what `refresh_lock` would change, without requests to the hub or writing.

    Raises:
        InputError: the lock is missing or damaged, or a package or a file in it is missing.
    """
    return _resolve(domains_file, lm_eval_dir, read_lock(lock_file), lambda dataset: None)[1]


def _resolve(
    domains_file: Path, lm_eval_dir: Path, old: Lock, newest: Callable[[str], str | None]
) -> tuple[Lock, LockChange]:
    """Return the current pins, and how they differ from the old ones."""
    sources = [source for group in load_domains(domains_file).values() for source in group]
    locked = [
        (source.package, source.files) for source in sources if isinstance(source, PackageSource)
    ]
    locked += [
        (source.package, [source.file]) for source in load_question_sources(lm_eval_dir).values()
    ]
    found = {
        name: path for package, files in locked for path, name in package_files(package, files)
    }
    hub_ids = sorted(
        {
            source.dataset
            for source in sources
            if isinstance(source, HubSource) and not source.is_local and source.revision is None
        }
    )
    hub = {
        dataset: commit
        for dataset in hub_ids
        if (commit := newest(dataset) or old.hub.get(dataset))
    }
    files = {name: sha256_file(found[name]) for name in sorted(found)}
    new = Lock(files, hub, platform.python_version())
    before, after = _pins(old), _pins(new)
    change = LockChange(
        added=sorted(after.keys() - before.keys()),
        changed=sorted(name for name in after if before.get(name, after[name]) != after[name]),
        removed=sorted(before.keys() - after.keys()),
        unresolved=[dataset for dataset in hub_ids if dataset not in hub],
    )
    return new, change


def _newest(dataset: str) -> str | None:
    """Return the newest commit of a hub dataset, or None if the hub does not answer."""
    try:
        return HfApi().dataset_info(dataset, timeout=HUB_TIMEOUT).sha
    except (OSError, ValueError, HTTPError) as error:
        detail = " ".join(str(error).split())[:200]
        LOGGER.warning(
            "the hub gave no commit of %s (%s): an existing pin is kept", dataset, detail
        )
        return None


def _pins(lock: Lock) -> dict[str, str]:
    hub = {f"hub:{dataset}": commit for dataset, commit in lock.hub.items()}
    return {**lock.files, **hub, **({"python": lock.python} if lock.python else {})}
