"""Where calibration text comes from: the sources in configs/domains.yaml, read and pinned."""

import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi

from pruneflow.artifacts import sha256_file, write_json
from pruneflow.data.record_template import Unreadable
from pruneflow.data.source_kinds import KINDS, LANGUAGE, HubSource, PackageSource, Source
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Malformed, Reading, package_files, read_lock
from pruneflow.questions.question_set import load_question_sources
from pruneflow.settings.base import check, read_yaml

__all__ = [
    "KINDS",
    "LANGUAGE",
    "Document",
    "LockChange",
    "PackageSource",
    "Source",
    "compare_lock",
    "known_domains",
    "load_domains",
    "read_source",
    "refresh_lock",
]

LOGGER = logging.getLogger(__name__)
HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's answer."""


@dataclass(frozen=True)
class Document:
    """One text and where it is from.

    Attributes:
        text: the text as it was read; "" for an empty record.
        source: name of the source.
        licence: SPDX expression.
        language: BCP-47 tag; `zxx` for source code.
        place: the file, and the line, record or row in it.
        group: documents of one group are always in one split; "" when it stands alone.
    """

    text: str
    source: str
    licence: str
    language: str
    place: str
    group: str


@dataclass(frozen=True)
class LockChange:
    """What a refresh did to `data/sources.lock`.

    Attributes:
        added: names of new pins: `PACKAGE/PATH`, `hub:DATASET` or `python`.
        changed: names of pins with another value than before.
        removed: names of pins that are gone.
        unresolved: hub ids that have no pin, for the hub did not answer.
    """

    added: list[str]
    changed: list[str]
    removed: list[str]
    unresolved: list[str]


def load_domains(domains_file: Path) -> dict[str, list[Source]]:
    """Read configs/domains.yaml: a mapping of domains, each a list of sources.

    Raises:
        InputError: names the domain, the source's place in its list, and the offending key.
    """
    values = read_yaml(domains_file)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{domains_file}: must be a mapping of domain names to lists of sources")
    domains: dict[str, list[Source]] = {}
    for domain, entries in values.items():
        if not isinstance(entries, list):
            raise InputError(
                f"{domains_file}: domain {domain} has no list of sources: add one, or remove it"
            )
        domains[domain] = [
            _parse(entry, Path(f"{domains_file}: domain {domain}, source {number}"))
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


def _parse(entry: Any, where: Path) -> Source:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: kind is {kind!r}: use one of {', '.join(sorted(KINDS))}")
    return check(KINDS[kind][0], entry, where)


def read_source(domain: str, source: Source, reading: Reading) -> Iterator[Document]:
    """Yield the documents of one source, in a stable order; an empty record is an empty text.

    What cannot be read ends the reading, or is added to `reading.malformed_records`, as
    `reading.malformed` says.

    Raises:
        InputError: the source is missing, has no text, is damaged or does not fit its template;
            the message begins with the domain and the source.
    """
    kind: str = source.kind  # type: ignore[attr-defined]
    where = f"domain {domain}, source {source.name}"
    skipped, empty = len(reading.malformed_records), True
    try:
        for record in KINDS[kind][1](source, reading):
            if isinstance(record, Unreadable):
                _refuse(record, source, reading)
                continue
            empty = empty and not record.text.strip()
            yield Document(
                record.text,
                source.name,
                source.licence,
                source.language,
                record.place,
                record.group,
            )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except OSError as error:
        raise InputError(
            f"{where}: {error.filename} cannot be read ({error.strerror}): make it readable"
        ) from None
    if empty:
        bad = reading.malformed_records[skipped:]
        first = f" ({len(bad)} skipped; {bad[0].place} {bad[0].detail})" if bad else ""
        raise InputError(
            f"{where}: it has no text{first}: correct the source in configs/domains.yaml or "
            "remove it"
        )


def _refuse(record: Unreadable, source: Source, reading: Reading) -> None:
    problem = " ".join(record.problem.split())
    if reading.malformed == "error":
        raise InputError(
            f"{record.place} {problem}: {record.mend}, or set documents.malformed: skip to drop "
            "and count what cannot be read"
        )
    bad = Malformed(source.name, record.place, record.reason, problem)
    reading.malformed_records.append(bad)


def refresh_lock(domains_file: Path, lock_file: Path, lm_eval_dir: Path) -> LockChange:
    """Pin every source of all domains and evaluation tasks anew in `data/sources.lock`.

    Package files are pinned by sha256, hub ids without a `revision` by the commit that the hub
    now has, and the Python installation by its version. When the hub does not answer, an earlier
    pin stays.

    Raises:
        InputError: a package or a file in it is missing.
    """
    try:
        old = read_lock(lock_file)
    except InputError:
        old = Lock()
    new, unresolved = _resolve(domains_file, lm_eval_dir, old, _newest)
    write_json(lock_file, {"files": new.files, "hub": new.hub, "python": new.python})
    return _change(old, new, unresolved)


def compare_lock(domains_file: Path, lock_file: Path, lm_eval_dir: Path) -> LockChange:
    """Say what `refresh_lock` would change; the hub is not asked, and nothing is written.

    Raises:
        InputError: the lock is missing or damaged, or a package or a file in it is missing.
    """
    old = read_lock(lock_file)
    return _change(old, *_resolve(domains_file, lm_eval_dir, old, lambda dataset: None))


def _resolve(
    domains_file: Path, lm_eval_dir: Path, old: Lock, newest: Callable[[str], str | None]
) -> tuple[Lock, list[str]]:
    """Return the pins of what is there now, and the hub ids that have none."""
    sources = [source for group in load_domains(domains_file).values() for source in group]
    wanted = [
        (source.package, source.files) for source in sources if isinstance(source, PackageSource)
    ]
    wanted += [
        (source.package, [source.file]) for source in load_question_sources(lm_eval_dir).values()
    ]
    found = {
        name: path for package, files in wanted for path, name in package_files(package, files)
    }
    hub_ids = sorted(
        {
            source.dataset
            for source in sources
            if isinstance(source, HubSource) and not source.is_local and source.revision is None
        }
    )
    hub: dict[str, str] = {}
    for dataset in hub_ids:
        commit = newest(dataset) or old.hub.get(dataset)
        if commit:
            hub[dataset] = commit
    pins = {name: sha256_file(found[name]) for name in sorted(found)}
    unresolved = [dataset for dataset in hub_ids if dataset not in hub]
    return Lock(pins, hub, platform.python_version()), unresolved


def _change(old: Lock, new: Lock, unresolved: list[str]) -> LockChange:
    before, after = _pins(old), _pins(new)
    return LockChange(
        added=sorted(after.keys() - before.keys()),
        changed=sorted(name for name in after if before.get(name, after[name]) != after[name]),
        removed=sorted(before.keys() - after.keys()),
        unresolved=unresolved,
    )


def _newest(dataset: str) -> str | None:
    """Return the newest commit of a hub dataset, or None where the hub gives no answer."""
    try:
        return HfApi().dataset_info(dataset, timeout=HUB_TIMEOUT).sha
    except (OSError, ValueError, HTTPError) as error:
        detail = " ".join(str(error).split())[:200]
        LOGGER.warning("the hub says nothing of %s (%s): an earlier pin stays", dataset, detail)
        return None


def _pins(lock: Lock) -> dict[str, str]:
    hub = {f"hub:{dataset}": commit for dataset, commit in lock.hub.items()}
    return {**lock.files, **hub, **({"python": lock.python} if lock.python else {})}
