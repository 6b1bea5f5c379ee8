"""Where calibration text comes from: every kind of source that configs/domains.yaml may name.

A kind is one function that yields texts, registered with the settings it takes:

    @source_kind
    def my_kind(source: MySource, reading: Reading) -> Iterator[str]: ...

Nothing that is read is imported or run. Files of a package must have the sha256 that
`data/sources.lock` records, so that an upgrade never changes the text unnoticed.
"""

import hashlib
import inspect
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pruneflow.artifacts import sha256_file, write_json
from pruneflow.calibration.packages import Reading, expand, package_files, read_locked
from pruneflow.calibration.questions import load_question_sources
from pruneflow.calibration.records import RecordFormat, docstrings, fill, read_records
from pruneflow.errors import InputError
from pruneflow.schema import Count, Name, Settings, check, read_yaml

TEXT_FOLDER = PurePosixPath("data/text")
LANGUAGE = r"^[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*$"
"""Shape of a BCP-47 tag."""

Patterns = Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True)
class Document:
    """One text and where it is from."""

    text: str
    source: str
    licence: str
    language: str


class Source(Settings, ABC):
    """What every kind of source has."""

    licence: str = Field(pattern=r"\S", description="SPDX identifier, or LicenseRef-NAME.")
    language: str = Field(
        "en",
        pattern=LANGUAGE,
        description="BCP-47 tag of the text's language.",
    )

    @property
    @abstractmethod
    def name(self) -> str:
        """What the source is called in the table of documents."""


class PackageSource(Source, RecordFormat):
    """Files inside an installed package, which is found but never imported."""

    kind: Literal["package"]
    package: Name = Field(description="Name by which Python would import it.")
    files: Patterns = Field(description="Paths or globs inside the package's folder.")
    content: Literal["records", "docstrings"] = Field(
        "records", description="`docstrings` takes those of the public names of each .py file."
    )

    @model_validator(mode="after")
    def _used(self) -> "PackageSource":
        ignored = sorted(self.model_fields_set & set(RecordFormat.model_fields))
        if self.content == "docstrings" and ignored:
            raise ValueError(f"{ignored[0]} means nothing with content: docstrings: remove it")
        return self

    @property
    def name(self) -> str:
        """The package and its patterns, shortened."""
        return f"{self.package}/{_shortened(self.files)}"


class PythonSource(Source):
    """The Python installation itself."""

    kind: Literal["python"]
    content: Literal["source", "topics"] = Field(
        description="`source`: the standard library's code; `topics`: the help topics' prose."
    )
    files: Patterns = Field(["*.py"], description="Globs inside the standard library's folder.")

    @model_validator(mode="after")
    def _used(self) -> "PythonSource":
        if self.content == "topics" and "files" in self.model_fields_set:
            raise ValueError("files means nothing with content: topics: remove it")
        return self

    @property
    def name(self) -> str:
        """The part of the installation."""
        return f"python/{self.content}"


class FilesSource(Source, RecordFormat):
    """The user's own files, all below data/text so that DVC knows when they change."""

    kind: Literal["files"]
    files: Patterns = Field(description="Paths or globs from the workspace's root.")

    @field_validator("files")
    @classmethod
    def _below_text_folder(cls, files: list[str]) -> list[str]:
        for pattern in files:
            path = PurePosixPath(pattern)
            if ".." in path.parts or not path.is_relative_to(TEXT_FOLDER) or path == TEXT_FOLDER:
                raise ValueError(
                    f"files names {pattern}, which is not below {TEXT_FOLDER}: put the file there "
                    f"and write {TEXT_FOLDER}/{path.name or 'NAME'}"
                )
        return files

    @property
    def name(self) -> str:
        """The patterns, shortened."""
        return _shortened(self.files)


class HubSource(Source, RecordFormat):
    """A dataset from the Hugging Face hub, or a local copy of one, read as a stream."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1, description="A hub id, or a folder with a local copy.")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Commit of a hub id; needed for hub ids."
    )
    subset: str | None = Field(None, description="Name of a configuration of the dataset.")
    split: str = Field("train", min_length=1, description="Which split is read.")
    rows: Count = Field(5000, description="Rows read from the beginning of the split.")

    @property
    def name(self) -> str:
        """The dataset and its configuration."""
        return f"{self.dataset}/{self.subset}" if self.subset else self.dataset


def _shortened(patterns: list[str]) -> str:
    return patterns[0] + (f" (+{len(patterns) - 1})" if len(patterns) > 1 else "")


Reader = Callable[[Any, Reading], Iterator[str]]
KINDS: dict[str, tuple[type[Source], Reader]] = {}


def source_kind(function: Reader) -> Reader:
    """Register a kind of source; its settings are the annotation of the first argument."""
    settings = next(iter(inspect.signature(function).parameters.values())).annotation
    (name,) = get_args(settings.model_fields["kind"].annotation)
    KINDS[name] = (settings, function)
    return function


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


def _parse(entry: Any, where: Path) -> Source:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: kind is {kind!r}: use one of {', '.join(sorted(KINDS))}")
    return check(KINDS[kind][0], entry, where)


def read_source(domain: str, source: Source, reading: Reading) -> Iterator[Document]:
    """Yield the documents of one source, in a stable order.

    Raises:
        InputError: the source is missing, empty, damaged or does not fit its template; the
            message begins with the domain and the source.
    """
    kind: str = source.kind  # type: ignore[attr-defined]
    empty = True
    try:
        for text in KINDS[kind][1](source, reading):
            if text.strip():
                empty = False
                yield Document(text, source.name, source.licence, source.language)
    except InputError as error:
        raise InputError(f"domain {domain}, source {source.name}: {error}") from None
    except OSError as error:
        raise InputError(
            f"domain {domain}, source {source.name}: {error.filename} cannot be read "
            f"({error.strerror}): make it readable"
        ) from None
    if empty:
        raise InputError(
            f"domain {domain}, source {source.name}: it has no text: correct the source in "
            "configs/domains.yaml or remove it"
        )


@source_kind
def package(source: PackageSource, reading: Reading) -> Iterator[str]:
    """Records, whole files or docstrings of an installed package."""
    for path, name in package_files(source.package, source.files):
        content = read_locked(path, name, reading)
        if source.content == "docstrings":
            yield docstrings(content, name)
        else:
            yield from read_records(content, name, source)


@source_kind
def python(source: PythonSource, reading: Reading) -> Iterator[str]:
    """Standard library source, or the topics behind `help()`."""
    if source.content == "topics":
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
        return
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in expand(root, source.files, "the standard library"):
        # Not of Python itself but of one machine: build settings, local start-up code.
        local = path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
        if not local and "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


@source_kind
def files(source: FilesSource, reading: Reading) -> Iterator[str]:
    """The user's files: one document each, or one for each record of a .jsonl or .csv."""
    for path in expand(reading.root, source.files, str(reading.root / TEXT_FOLDER)):
        name = path.relative_to(reading.root).as_posix()
        if name == f"{TEXT_FOLDER}/README.md":
            continue
        content = path.read_bytes()
        reading.text_files[name] = hashlib.sha256(content).hexdigest()
        yield from read_records(content, name, source)


@source_kind
def hub(source: HubSource, reading: Reading) -> Iterator[str]:
    """The first rows of a dataset, streamed."""
    from itertools import islice

    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    folder = reading.root / source.dataset
    local = folder.is_dir()
    if not local and source.revision is None:
        raise InputError(
            f"{source.dataset} is no folder, and a hub id needs `revision`: give the commit (40 "
            "hexadecimal digits), or a folder with a local copy"
        )
    try:
        rows = load_dataset(
            str(folder) if local else source.dataset,
            source.subset,
            split=source.split,
            revision=None if local else source.revision,
            streaming=True,
        )
        yield from fill(islice(iter(rows), source.rows), source.dataset, source)
    except (OSError, ValueError, DatasetsError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(
            f"{source.dataset} cannot be read ({detail}): correct dataset, subset, split or "
            "revision; with HF_HUB_OFFLINE=1 only a local copy can be read"
        ) from None


def lock_sources(domains_file: Path, lock_file: Path, lm_eval_dir: Path) -> dict[str, str]:
    """Write the sha256 of every package file that domains and evaluation tasks read.

    Returns:
        The sha256 by `PACKAGE/PATH`.

    Raises:
        InputError: a package or a file in it is missing.
    """
    wanted = [
        (source.package, source.files)
        for sources in load_domains(domains_file).values()
        for source in sources
        if isinstance(source, PackageSource)
    ]
    wanted += [
        (source.package, [source.file]) for source in load_question_sources(lm_eval_dir).values()
    ]
    found = [pair for package, patterns in wanted for pair in package_files(package, patterns)]
    lock = {name: sha256_file(path) for path, name in sorted(found, key=lambda pair: pair[1])}
    write_json(lock_file, {"files": lock})
    return lock
