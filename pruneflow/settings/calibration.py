"""Settings of the calibration data: documents, and the token blocks sampled from them."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pruneflow.settings.base import Count, Name, Settings, Share

AddBos = bool | Literal["auto"]

MAX_SHARE_ERROR = 0.02
"""Largest difference between a domain's actual and requested share of the calibration tokens."""


class DocumentSettings(Settings):
    """How the table of documents is built from the sources in configs/domains.yaml."""

    domains: list[Name] = Field(min_length=1, description="Domains of configs/domains.yaml to use.")
    min_per_domain: Annotated[int, Field(ge=3)] = Field(
        20, description="Minimum documents per domain; validation fails below it."
    )
    max_per_domain: Count = Field(800, description="Maximum documents per domain.")
    min_characters: Count = Field(80, description="Shorter documents are dropped.")
    max_characters: Count = Field(
        20_000, description="Longer documents are truncated at the end of a line."
    )
    max_record_mb: Count = Field(
        16, description="Lines, records and text files above this size (MB) are malformed."
    )
    malformed: Literal["error", "skip"] = Field(
        "error",
        description="For a line, record or file that cannot be read: `error` fails the stage and "
        "names it, `skip` drops and counts it.",
    )
    min_compressed_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Documents that zlib compresses below this share of their size are repetitive "
        "and are dropped; 0 keeps them.",
    )
    language_confidence: float = Field(
        0.95,
        ge=0.5,
        le=1,
        description="Documents identified with at least this confidence as another language than "
        "their source's are dropped; 1 keeps them.",
    )
    near_duplicate_similarity: float = Field(
        0.8,
        gt=0.4,
        le=1,
        description="Documents at least this similar to an earlier one (Jaccard similarity of word "
        "5-grams, estimated by MinHash) are dropped; 1 drops exact duplicates only.",
    )
    personal_data: Literal["mask", "drop", "keep"] = Field(
        "mask",
        description="E-mail addresses, phone numbers and keys: `mask` replaces them, `drop` drops "
        "their documents, `keep` leaves them unchanged.",
    )
    validation_share: Share = Field(
        0.15, description="Share of documents for health checks of rounds."
    )
    test_share: Share = Field(
        0.25, description="Share of documents for perplexity; never calibrated on."
    )
    seed: int = Field(
        0, ge=0, description="Seed for sampling documents when a domain has too many."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("domains lists a domain twice: remove one")
        if self.validation_share + self.test_share > 0.8:
            raise ValueError(
                "validation_share + test_share leave less than 20 % for calibration: lower one"
            )
        if self.max_per_domain < self.min_per_domain:
            raise ValueError("max_per_domain is below min_per_domain: raise it")
        if self.max_characters < self.min_characters:
            raise ValueError("max_characters is below min_characters: raise it")
        return self


class CalibrationSettings(Settings):
    """How documents become packed token blocks.

    The mixture is given by `sequences` and `weights`, or by `tokens` per domain.
    """

    sequence_length: int = Field(128, ge=8, description="Tokens in a calibration sequence.")
    domains: list[Name] = Field(
        default=[],
        description="Domains to calibrate on, all when empty. Perplexity is measured on all "
        "documents.domains.",
    )
    sequences: Count | None = Field(
        48, description="Calibration sequences over all domains; null when `tokens` is set."
    )
    weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Share of each calibration domain, summing to 1; equal shares when empty.",
    )
    tokens: dict[Name, Count] = Field(
        default_factory=dict,
        description="Or: calibration tokens of each domain (at least one sequence).",
    )
    reserve: float = Field(
        2.0,
        ge=1,
        le=16,
        description="Sequences stored per domain, as a multiple of those used, so that "
        "pruning.domain_feedback can use more of a domain whose loss rises (fewer where a domain "
        "has less text).",
    )
    validation_sequences: Count = Field(4, description="Validation sequences per domain.")
    test_sequence_length: int = Field(256, ge=8, description="Tokens in a perplexity window.")
    test_sequences: Count = Field(12, description="Perplexity windows per domain.")
    add_bos_token: AddBos = Field(
        "auto",
        description="Whether every sequence and perplexity window begins with the "
        "beginning-of-text token; `auto` for what the tokenizer itself puts before a text.",
    )
    seed: int = Field(0, ge=0, description="Seed for sampling sequences.")

    @model_validator(mode="after")
    def _mixture(self) -> Self:
        total = math.fsum(self.weights.values())
        if self.weights and abs(total - 1) > 1e-3:
            raise ValueError(f"weights add up to {total:g}: make them add up to 1")
        if self.tokens and (self.sequences is not None or self.weights):
            raise ValueError(
                "tokens sets the size of each domain: with it set sequences to null and weights to "
                "{}"
            )
        if not self.tokens and self.sequences is None:
            raise ValueError("sequences is null: give sequences, or tokens of every domain")
        short = [name for name, count in self.tokens.items() if count < self.sequence_length]
        if short:
            raise ValueError(
                f"tokens.{short[0]} is below sequence_length ({self.sequence_length}): a domain "
                "needs at least one sequence"
            )
        return self

    def calibrated(self, domains: list[str]) -> list[str]:
        """The subset of `domains` to calibrate on, in their order."""
        return [name for name in domains if not self.domains or name in self.domains]

    def check_domains(self, domains: list[str]) -> None:
        """Check that `domains`, `weights` and `tokens` name known domains.

        Raises:
            ValueError: names the setting and the domain.
        """
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("calibration.domains lists a domain twice: remove one")
        outside = [name for name in self.domains if name not in domains]
        if outside:
            raise ValueError(
                f"calibration.domains names {outside[0]}, which is not in documents.domains: add "
                "it there, or correct the name"
            )
        domains = self.calibrated(domains)
        for setting in ("weights", "tokens"):
            given = getattr(self, setting)
            unknown = sorted(set(given) - set(domains))
            if unknown:
                raise ValueError(
                    f"calibration.{setting} names {unknown[0]}, which is not in "
                    f"{'calibration' if self.domains else 'documents'}.domains: remove it, or "
                    "correct the name"
                )
            missing = [name for name in domains if given and name not in given]
            if missing:
                raise ValueError(f"calibration.{setting} has no entry for {missing[0]}: add it")
        if self.sequences is not None and self.sequences < len(domains):
            raise ValueError(
                "calibration.sequences is below the number of domains: raise it to at least "
                f"{len(domains)}"
            )
