"""Settings of the calibration data: what becomes a document, and what is drawn from documents."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pruneflow.settings.base import Count, Name, Settings, Share

MAX_SHARE_ERROR = 0.02
"""How far a domain's share of the calibration tokens may be from what was asked for: 2 points."""


class DocumentSettings(Settings):
    """How the table of documents is drawn from the sources in configs/domains.yaml."""

    domains: list[Name] = Field(min_length=1, description="Which domains of configs/domains.yaml.")
    min_per_domain: Annotated[int, Field(ge=3)] = Field(
        20, description="Documents that each domain must have, or validation fails."
    )
    max_per_domain: Count = Field(800, description="Documents kept of each domain.")
    min_characters: Count = Field(80, description="Shorter documents are dropped.")
    max_characters: Count = Field(20_000, description="Longer documents are cut at a line end.")
    max_record_mb: Count = Field(
        16, description="A longer line, record or text file (MB) counts as malformed."
    )
    malformed: Literal["error", "skip"] = Field(
        "error",
        description="What a line, record or file that cannot be read does: end the stage with its "
        "place, or be dropped and counted.",
    )
    min_compressed_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Documents that zlib makes smaller than this share of their size repeat "
        "themselves and are dropped; 0 keeps them.",
    )
    language_confidence: float = Field(
        0.95,
        ge=0.5,
        le=1,
        description="Documents identified at least so surely as another language than their "
        "source's are dropped; 1 keeps them.",
    )
    near_duplicate_similarity: float = Field(
        0.8,
        gt=0.4,
        le=1,
        description="Documents whose sets of five words in a row are so similar (Jaccard, "
        "estimated by MinHash) to an earlier one's are dropped; 1 drops equal ones only.",
    )
    personal_data: Literal["mask", "drop", "keep"] = Field(
        "mask",
        description="What happens to e-mail addresses, phone numbers and keys: masked, their "
        "documents dropped, or left as they are.",
    )
    validation_share: Share = Field(0.15, description="Documents for health checks of rounds.")
    test_share: Share = Field(0.25, description="Documents for perplexity; never calibrated on.")
    seed: int = Field(0, ge=0, description="Which documents are drawn when there are too many.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("domains lists a domain twice")
        if self.validation_share + self.test_share > 0.8:
            raise ValueError("validation_share + test_share leave under 20 % for calibration")
        if self.max_per_domain < self.min_per_domain:
            raise ValueError("max_per_domain is below min_per_domain")
        if self.max_characters < self.min_characters:
            raise ValueError("max_characters is below min_characters")
        return self


class CalibrationSettings(Settings):
    """How documents become packed token blocks.

    The mixture is `sequences` divided by `weights`, or `tokens` of each domain.
    """

    sequence_length: int = Field(128, ge=8, description="Tokens in a calibration sequence.")
    domains: list[Name] = Field(
        default=[],
        description="Which of documents.domains to calibrate on; all when empty. Perplexity is "
        "measured on all of them.",
    )
    sequences: Count | None = Field(
        48, description="Calibration sequences over all domains; null where `tokens` says it."
    )
    weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Share of every domain calibrated on, together 1; equal shares when empty.",
    )
    tokens: dict[Name, Count] = Field(
        default_factory=dict,
        description="Or: calibration tokens of every domain (at least one sequence).",
    )
    reserve: float = Field(
        2.0,
        ge=1,
        le=16,
        description="So many times a domain's sequences are kept, where there are so many, for "
        "the closed loop (pruning.domain_feedback) to draw more of a domain that suffers.",
    )
    validation_sequences: Count = Field(4, description="Validation sequences of each domain.")
    test_sequence_length: int = Field(256, ge=8, description="Tokens in a perplexity window.")
    test_sequences: Count = Field(12, description="Perplexity windows of each domain.")
    seed: int = Field(0, ge=0, description="Which sequences are drawn.")

    @model_validator(mode="after")
    def _mixture(self) -> Self:
        total = math.fsum(self.weights.values())
        if self.weights and abs(total - 1) > 1e-3:
            raise ValueError(f"weights add up to {total:g}: make them add up to 1")
        if self.tokens and (self.sequences is not None or self.weights):
            raise ValueError(
                "tokens says how much of each domain: with it set sequences to null and weights to "
                "{}"
            )
        if not self.tokens and self.sequences is None:
            raise ValueError("sequences is null: give sequences, or tokens of every domain")
        short = [name for name, count in self.tokens.items() if count < self.sequence_length]
        if short:
            raise ValueError(
                f"tokens.{short[0]} is below sequence_length ({self.sequence_length}): a domain "
                "has at least one sequence"
            )
        return self

    def chosen(self, domains: list[str]) -> list[str]:
        """Those of `domains` that are calibrated on, in their order."""
        return [name for name in domains if not self.domains or name in self.domains]

    def check_domains(self, domains: list[str]) -> None:
        """Check that what is calibrated on is of the domains, and weights or tokens of that.

        Raises:
            ValueError: names the setting and the domain.
        """
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("calibration.domains lists a domain twice")
        outside = [name for name in self.domains if name not in domains]
        if outside:
            raise ValueError(
                f"calibration.domains names {outside[0]}, which is not in documents.domains"
            )
        domains = self.chosen(domains)
        for setting in ("weights", "tokens"):
            given = getattr(self, setting)
            unknown = sorted(set(given) - set(domains))
            if unknown:
                raise ValueError(
                    f"calibration.{setting} names {unknown[0]}, which is not in "
                    f"{'calibration' if self.domains else 'documents'}.domains"
                )
            missing = [name for name in domains if given and name not in given]
            if missing:
                raise ValueError(f"calibration.{setting} says nothing of {missing[0]}: add it")
        if self.sequences is not None and self.sequences < len(domains):
            raise ValueError(
                "calibration.sequences is below the number of domains: give each at least one"
            )
