"""The kinds of sources in configs/domains.yaml: their settings and how they are read.

Sources are never imported or executed, except for Python's own help topics. Package files must
match their sha256 in `data/sources.lock`: an upgrade cannot change the text unnoticed.
"""

import os
import sysconfig
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from pydoc_data.topics import topics
from typing import Annotated, Any, Literal, Self

from datasets import load_dataset
from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from pydantic import Field, field_validator, model_validator

from pruneflow.artifacts import sha256_file
from pruneflow.data.file_readers import read_records
from pruneflow.data.licences import licence_problem
from pruneflow.data.record_template import (
    RecordFormat,
    Row,
    TextRecord,
    Unreadable,
    as_record,
    docstrings,
    fill,
    too_long,
)
from pruneflow.errors import InputError
from pruneflow.locked_files import Reading, check_locked, expand, package_files, read_locked
from pruneflow.settings.base import Count, Name, Settings

TEXT_FOLDER = PurePosixPath("data/text")
LANGUAGE = r"^[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*$"
"""Pattern of a BCP-47 tag."""
NO_LANGUAGE = "zxx"
"""The tag of text in no human language, such as source code."""

UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    ArithmeticError,  # a date after the year 9999
    LookupError,  # an unknown time zone
    DatasetsError,
    HTTPError,
)
"""What `datasets` raises for a dataset that cannot be read."""

Patterns = Annotated[list[str], Field(min_length=1)]
Records = Iterator[TextRecord | Unreadable]


class Source(Settings, ABC):
    """Settings that all kinds of sources have."""

    licence: str = Field(description="SPDX expression, or LicenseRef-NAME.")
    language: str = Field(
        "en",
        pattern=LANGUAGE,
        description="BCP-47 tag of the text's language; zxx for source code.",
    )

    @field_validator("licence")
    @classmethod
    def _known(cls, licence: str) -> str:
        problem = licence_problem(licence)
        if problem:
            raise ValueError(problem)
        return licence

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the source in the table of documents."""

    @abstractmethod
    def read(self, reading: Reading) -> Records:
        """Yield the records in a stable order, and log what is read in `reading`."""


class PackageSource(Source, RecordFormat):
    """Files inside an installed package, which is never imported."""

    kind: Literal["package"]
    package: Name = Field(description="Import name of the package.")
    files: Patterns = Field(description="Paths or globs inside the package's folder.")
    content: Literal["records", "docstrings"] = Field(
        "records", description="`docstrings`: those of the public names in each .py file."
    )

    @model_validator(mode="after")
    def _docstrings_have_no_format(self) -> Self:
        ignored = sorted(self.model_fields_set & set(RecordFormat.model_fields))
        if self.content == "docstrings" and ignored:
            raise ValueError(f"{ignored[0]} has no effect with content: docstrings: remove it")
        return self

    @property
    def name(self) -> str:
        """The package and its first pattern."""
        return f"{self.package}/{_shortened(self.files)}"

    def read(self, reading: Reading) -> Records:
        """Yield records, text files or docstrings."""
        for path, name in package_files(self.package, self.files):
            if self.content == "records":
                check_locked(path, name, reading)
                yield from read_records(path, name, self, reading.max_record_bytes)
            elif path.stat().st_size > reading.max_record_bytes:
                yield too_long(name, reading.max_record_bytes, "exclude it")
            else:
                yield docstrings(read_locked(path, name, reading), name)


class PythonSource(Source):
    """The Python installation itself."""

    kind: Literal["python"]
    content: Literal["source", "topics"] = Field(
        description="`source`: code of the standard library; `topics`: text of the help topics."
    )
    files: Patterns = Field(["*.py"], description="Globs inside the standard library's folder.")

    @model_validator(mode="before")
    @classmethod
    def _code_has_no_language(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("content") == "source":
            return {"language": NO_LANGUAGE, **values}
        return values

    @model_validator(mode="after")
    def _topics_have_no_files(self) -> Self:
        if self.content == "topics" and "files" in self.model_fields_set:
            raise ValueError("files has no effect with content: topics: remove it")
        return self

    @property
    def name(self) -> str:
        """The part of the installation."""
        return f"python/{self.content}"

    def read(self, reading: Reading) -> Records:
        """Yield the files of the standard library, or the topics behind `help()`."""
        if self.content == "topics":
            for topic in sorted(topics):
                yield TextRecord(topics[topic], f"pydoc_data/topics.py, topic {topic}")
            return
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in expand(root, self.files, "the standard library"):
            # These belong to one machine, not to Python: build settings, local start-up code.
            local = path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
            if not local and "site-packages" not in path.parts:
                yield _code(path, path.relative_to(root).as_posix(), reading.max_record_bytes)


class FilesSource(Source, RecordFormat):
    """Your own files, in data/text so that DVC tracks their changes."""

    kind: Literal["files"]
    files: Patterns = Field(description="Paths or globs relative to the workspace root.")

    @field_validator("files")
    @classmethod
    def _below_text_folder(cls, files: list[str]) -> list[str]:
        for pattern in files:
            if not _below_text(pattern):
                raise ValueError(
                    f"files names {pattern}, which is not in {TEXT_FOLDER}: put the file there "
                    f"and write {TEXT_FOLDER}/{PurePosixPath(pattern).name or 'NAME'}"
                )
        return files

    @property
    def name(self) -> str:
        """The first pattern."""
        return _shortened(self.files)

    def read(self, reading: Reading) -> Records:
        """Yield a record for each file, or for each record or separated part of it."""
        _check_links(reading.root)
        for path in expand(reading.root, self.files, str(reading.root / TEXT_FOLDER)):
            name = path.relative_to(reading.root).as_posix()
            # The folder's own README and DVC's files are not text.
            if name == f"{TEXT_FOLDER}/README.md" or path.suffix == ".dvc":
                continue
            reading.text_files[name] = sha256_file(path)
            yield from read_records(path, name, self, reading.max_record_bytes)


class HubSource(Source, RecordFormat):
    """A dataset from the Hugging Face hub, or a local copy of one, streamed."""

    kind: Literal["hub"]
    dataset: str = Field(
        min_length=1, description="A hub id, or a folder in data/text with a local copy."
    )
    revision: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of a hub id; by default pinned in data/sources.lock by "
        "`pruneflow data refresh`.",
    )
    subset: str | None = Field(None, description="Name of a configuration of the dataset.")
    folder: str | None = Field(None, description="Read only this folder of the dataset.")
    split: str = Field("train", min_length=1, description="The split to read.")
    rows: Count = Field(5000, description="Number of rows to read, from the start of the split.")

    @model_validator(mode="after")
    def _settings_apply(self) -> Self:
        for setting in ("records", "separator"):
            if getattr(self, setting):
                raise ValueError(f"{setting} has no effect with kind: hub: remove it")
        if self.is_local and self.revision:
            raise ValueError(f"revision has no effect on a copy in {TEXT_FOLDER}: remove it")
        return self

    @property
    def is_local(self) -> bool:
        """Whether the dataset is a folder in data/text."""
        return _below_text(self.dataset)

    @property
    def name(self) -> str:
        """The dataset, its configuration and its folder."""
        return "/".join(part for part in (self.dataset, self.subset, self.folder) if part)

    def read(self, reading: Reading) -> Records:
        """Yield the first rows of the dataset, streamed."""
        if self.is_local:
            dataset, revision = self._local_copy(reading), None
        else:
            dataset, revision = self.dataset, self._commit(reading)
            reading.hub[dataset] = revision
        try:
            rows = load_dataset(
                dataset,
                self.subset,
                data_dir=self.folder,
                split=self.split,
                revision=revision,
                streaming=True,
            )
            places = (
                Row(f"{self.dataset}, row {number}", row)
                for number, row in enumerate(islice(iter(rows), self.rows), start=1)
            )
            yield from fill(places, self, reading.max_record_bytes)
        except UNREADABLE as error:
            detail = " ".join(str(error).split())[:200]
            if self.is_local:
                fix = (
                    "correct the file, or dataset, subset or split (kind: files also reads jsonl, "
                    "csv and parquet, and reports the line)"
                )
            elif isinstance(error, ConnectionError | HTTPError):
                fix = (
                    "run where the hub can be reached (HF_HUB_OFFLINE unset), or put a copy in "
                    f"{TEXT_FOLDER} and write dataset: {TEXT_FOLDER}/NAME"
                )
            else:
                fix = "correct dataset, subset, split or revision"
            raise InputError(f"{self.dataset} cannot be read ({detail}): {fix}") from None

    def _local_copy(self, reading: Reading) -> str:
        """Return the folder of the copy; its files are logged."""
        _check_links(reading.root)
        folder = reading.root / self.dataset
        paths = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
        if not paths:
            raise InputError(f"{folder} has no files: put a copy of the dataset there")
        for path in paths:
            reading.text_files[path.relative_to(reading.root).as_posix()] = sha256_file(path)
        return str(folder)

    def _commit(self, reading: Reading) -> str:
        """Return the commit to read a hub id at."""
        if (reading.root / self.dataset).is_dir():
            raise InputError(
                f"{self.dataset} is a folder outside {TEXT_FOLDER}, where DVC does not track it: "
                f"move it and write dataset: {TEXT_FOLDER}/{Path(self.dataset).name}"
            )
        pinned = self.revision or (reading.lock.hub.get(self.dataset) if reading.lock else None)
        if pinned is None:
            raise InputError(
                f"{self.dataset} has no commit in data/sources.lock: run `pruneflow data refresh` "
                "where there is a network, or give `revision` (40 hexadecimal digits)"
            )
        return pinned


KINDS: dict[str, type[Source]] = {
    "package": PackageSource,
    "python": PythonSource,
    "files": FilesSource,
    "hub": HubSource,
}


def _below_text(path: str) -> bool:
    parts = PurePosixPath(path)
    return ".." not in parts.parts and parts.is_relative_to(TEXT_FOLDER) and parts != TEXT_FOLDER


def _shortened(patterns: list[str]) -> str:
    return patterns[0] + (f" (+{len(patterns) - 1})" if len(patterns) > 1 else "")


def _check_links(root: Path) -> None:
    """Refuse links to folders in data/text: DVC does not see changes behind them."""
    for folder, names, _ in os.walk(root / TEXT_FOLDER):
        linked = next((name for name in sorted(names) if Path(folder, name).is_symlink()), None)
        if linked is not None:
            place = Path(folder, linked).relative_to(root).as_posix()
            raise InputError(
                f"{place} is a link to a folder, and DVC does not see changes behind it: put the "
                "folder itself there, or mount it (`mount --bind`)"
            )


def _code(path: Path, name: str, max_bytes: int) -> TextRecord | Unreadable:
    if path.stat().st_size > max_bytes:
        return too_long(name, max_bytes, "exclude it")
    try:
        with tokenize.open(path) as stream:  # in the encoding that the file declares
            return as_record(stream.read(), name, max_bytes)
    except (SyntaxError, UnicodeDecodeError) as error:
        return Unreadable(name, f"is not Python source ({error})", "exclude it")
