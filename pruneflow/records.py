"""Records: what one stage writes as JSON and another one reads, with a schema."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError

RecordT = TypeVar("RecordT", bound="Record")


class DomainLoss(TypedDict):
    """Loss of a model on the text of one domain."""

    nll: Annotated[float, Field(description="Sum of -log p over all scored tokens, in nats.")]
    tokens: Annotated[int, Field(description="Scored tokens: all but the first of each window.")]
    perplexity: Annotated[float, Field(description="exp(nll / tokens).")]
    windows: NotRequired[Annotated[list[float], Field(description="nll of each window.")]]
    bytes: NotRequired[
        Annotated[int, Field(description="UTF-8 bytes of the text behind the scored tokens.")]
    ]
    bits_per_byte: NotRequired[
        Annotated[float, Field(description="nll / (bytes ln 2): comparable between tokenizers.")]
    ]


class Record(BaseModel):
    """Base class of all records: unknown keys are refused, and a record never changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return self.model_dump(mode="json")


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON; a reader sees the complete file or the earlier one."""
    write_json(path, record.to_json())


def read_record(kind: type[RecordT], path: Path) -> RecordT:
    """Read and check a record.

    Raises:
        DamagedArtifactError: the file is missing, is not JSON, or does not fit the schema.
    """
    return parse_record(kind, read_json(path), str(path))


def find_record(kind: type[RecordT], path: Path) -> RecordT | None:
    """Read a record; None where it is missing or does not fit the schema."""
    try:
        return read_record(kind, path)
    except DamagedArtifactError:
        return None


def parse_record(kind: type[RecordT], values: Any, where: str) -> RecordT:
    """Check the values of a record.

    Args:
        kind: the record's class.
        values: what its JSON file holds.
        where: names the file in an error.

    Raises:
        DamagedArtifactError: the values do not fit the schema; names the first field at fault.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DamagedArtifactError(
            f"{where} is not a {kind.__name__} of this version of pruneflow ({field}: "
            f"{first['msg'].lower()}): delete it and run `dvc repro` again"
        ) from None
