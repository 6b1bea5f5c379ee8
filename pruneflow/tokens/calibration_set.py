"""Calibration sets: packed token blocks that scores, refits and perplexity are computed on.

Of the split `calibration` a set holds more than a round takes, where there is more: a round takes
the first of each domain, and where the closed loop weighs a domain more (docs/method.md, step 5)
it takes more of it, without a look at the table of documents.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from pruneflow.artifacts import sha256_json, staged_directory, verify_manifest, write_manifest
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.settings.base import check
from pruneflow.settings.calibration import CalibrationSettings, DocumentSettings
from pruneflow.settings.recovery import RecoverySettings
from pruneflow.tokens.drawing import Wanted, draw_blocks, wanted_blocks
from pruneflow.tokens.mixture import Mixture
from pruneflow.tokens.packing import Drawn, Packer, tokens_of

BLOCKS = "blocks.safetensors"


@dataclass(frozen=True)
class CalibrationSet:
    """Token blocks by split and domain.

    Attributes:
        blocks: `blocks[split][domain]` is an int64 tensor [blocks, tokens]. The split calibration
            holds a reserve: `take` gives what a round calibrates on.
        digest: sha256 over blocks and mixture.
        manifest: counts, mixture, tokenizer and seed.
    """

    blocks: dict[str, dict[str, torch.Tensor]]
    digest: str
    manifest: dict[str, Any]

    @property
    def mixture(self) -> Mixture:
        """What was asked for of each domain; all that is held where the manifest does not say."""
        facts = self.manifest.get("mixture")
        if facts is None:
            return Mixture.held({name: len(rows) for name, rows in self._calibration.items()})
        return Mixture(facts["shares"], facts["counts"])

    def take(self, weights: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """The calibration blocks of one round, by domain: the first of each.

        Args:
            weights: of every domain, only proportions matter; None for the mixture's own. Whatever
                the weights, there are as many blocks over all domains, at least one of each, and
                no more of a domain than is held (the log says where that is too few).

        Raises:
            InputError: the weights are not of the set's domains.
        """
        held = {name: len(rows) for name, rows in self._calibration.items()}
        mixture = self.mixture
        counts = mixture.counts if weights is None else mixture.reweighed(weights, held)
        return {name: rows[: counts[name]] for name, rows in self._calibration.items()}

    @property
    def _calibration(self) -> dict[str, torch.Tensor]:
        return self.blocks["calibration"]

    @classmethod
    def load(cls, directory: Path, tokenizer_digest: str | None = None) -> Self:
        """Read a folder that `build_blocks` wrote, after checking its manifest.

        Args:
            directory: the folder.
            tokenizer_digest: of the model that will read the tokens; None to trust the caller.

        Raises:
            DamagedArtifactError: a file is missing or not the manifest's.
            InputError: another tokenizer made the tokens.
        """
        manifest = verify_manifest(directory)
        if BLOCKS not in manifest["files"]:
            raise DamagedArtifactError(
                f"{directory} holds no {BLOCKS}: run the stage calibration again"
            )
        if tokenizer_digest is not None and manifest["tokenizer"] != tokenizer_digest:
            raise InputError(
                f"{directory} was made with another tokenizer than the model's: run the stage "
                "calibration again"
            )
        blocks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in sorted(load_file(directory / BLOCKS).items()):
            split, domain = name.split("/", 1)
            blocks.setdefault(split, {})[domain] = tensor.long()
        return cls(blocks, manifest["digest"], manifest)

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, Sequence[str]],
        tokenizer: Any,
        *,
        sequences: int = 96,
        sequence_length: int = 128,
        weights: Mapping[str, float] | None = None,
        reserve: float = 2.0,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> Self:
        """Make a set in memory from documents by domain.

        Every document is in one split only: those with the lowest hashes are for validation.

        Args:
            texts: documents by domain; at least two different ones each.
            tokenizer: a transformers tokenizer with an end-of-text token.
            sequences: calibration sequences over all domains.
            sequence_length: tokens in a sequence.
            weights: share of every domain, together 1; None for as many sequences of each, at
                least `sequences` together.
            reserve: so many times a domain's sequences are held, where there are so many, for the
                closed loop (`Recipe.domain_feedback`) to take more of a domain that suffers.
            validation_share: share of a domain's documents, and of as many sequences.
            seed: which sequences are drawn.

        Raises:
            InputError: a domain has too little text, or the shares cannot be.
        """
        if not texts:
            raise InputError("a calibration set needs text: give it at least one domain")
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token): set one")
        mixture = _mixture_of(list(texts), sequences, sequence_length, weights, reserve)
        blocks: dict[str, dict[str, torch.Tensor]] = {"calibration": {}, "validation": {}}
        for domain, documents in texts.items():
            unique = sorted(
                {hashlib.sha256(text.encode()).hexdigest(): text for text in documents}.items()
            )
            held_out = max(1, round(validation_share * len(unique)))
            count = mixture.counts[domain]
            for split, chosen, least, most in (
                ("calibration", unique[held_out:], count, math.ceil(reserve * count)),
                ("validation", unique[:held_out], max(1, round(validation_share * count)), None),
            ):
                key = f"{split}/{domain}:{seed}"
                packer = Packer(sequence_length, tokenizer.eos_token_id, most or least, key)
                packer.add(tokens_of([text for _, text in chosen], tokenizer))
                drawn = packer.drawn()
                if drawn.available < least:
                    raise InputError(
                        f"domain {domain} has {drawn.available} {split} sequences of "
                        f"{sequence_length} tokens in {len(chosen)} documents, {least} are asked "
                        "for: give it more text, or lower sequences or sequence_length"
                    )
                blocks[split][domain] = torch.from_numpy(drawn.blocks).long()
        facts = {"seed": seed, "sequence_length": sequence_length, "mixture": mixture.facts}
        named = {
            f"{split}/{domain}": rows for split in blocks for domain, rows in blocks[split].items()
        }
        digest = sha256_json({"blocks": tensors_digest(named), "mixture": mixture.facts})
        return cls(blocks, digest, facts)


def build_blocks(
    settings: CalibrationSettings,
    document_settings: DocumentSettings,
    documents_dir: Path,
    tokenizer: Any,
    tokenizer_digest: str,
    set_out: Path,
    held_out_out: Path,
    recovery: RecoverySettings | None = None,
    longest: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the calibration set and the held-out set, both or neither.

    The table is read once, in its order, some documents at a time. `settings.seed` decides which
    calibration, validation and recovery blocks are drawn. Held-out blocks depend on no seed.

    Args:
        settings: lengths, mixture and numbers of sequences.
        document_settings: the domains, in their order; held-out blocks are of all of them.
        documents_dir: folder of the table of documents.
        tokenizer: a transformers tokenizer with an end-of-text token.
        tokenizer_digest: identifies it.
        set_out: folder for the splits calibration and validation, and recovery where asked for.
        held_out_out: folder for the split test.
        recovery: its budget and length of sequences; the split recovery holds all that the
            calibration documents have, as far as the budget can use it.
        longest: tokens in the longest sequence that the model knows (max_position_embeddings).

    Returns:
        The manifests of the two folders. `mixture` is what was asked for of the calibration split
        and what it came to; `domains` counts by domain and split, for calibration what a round
        without feedback takes, and how many sequences are held.

    Raises:
        InputError: a domain has too few tokens, its share cannot be, or a sequence is longer than
            the model knows.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the model's tokenizer has no end-of-text token (eos_token): set one")
    domains = document_settings.domains
    mixture = Mixture.of(settings, settings.chosen(domains))
    wanted = wanted_blocks(settings, mixture, recovery, domains)
    for item in wanted:
        if longest is not None and item.length > longest:
            raise InputError(
                f"{item.length_setting} is {item.length}, and the model knows sequences of up to "
                f"{longest} tokens (max_position_embeddings): lower it"
            )
    documents = verify_manifest(documents_dir)["digest"]
    drawn = draw_blocks(wanted, documents_dir, tokenizer, settings.seed)
    facts = {"tokenizer": tokenizer_digest, "documents": documents}
    set_facts = {
        "seed": settings.seed,
        "sequence_length": settings.sequence_length,
        "mixture": mixture.facts,
    }
    with staged_directory(set_out) as chosen, staged_directory(held_out_out) as held_out:
        return (
            _write(
                chosen,
                {item: found for item, found in drawn.items() if item.split != "test"},
                {**facts, **set_facts},
            ),
            _write(
                held_out,
                {item: found for item, found in drawn.items() if item.split == "test"},
                {**facts, "sequence_length": settings.test_sequence_length},
            ),
        )


def _mixture_of(
    domains: list[str],
    sequences: int,
    sequence_length: int,
    weights: Mapping[str, float] | None,
    reserve: float,
) -> Mixture:
    """The mixture of a set made in memory, by the rules of the settings."""
    if weights is None:
        sequences = len(domains) * -(-sequences // len(domains))
    values = {
        "sequences": sequences,
        "sequence_length": sequence_length,
        "weights": dict(weights or {}),
        "reserve": reserve,
    }
    settings = check(CalibrationSettings, values, "a calibration set")
    try:
        settings.check_domains(domains)
    except ValueError as error:
        raise InputError(f"a calibration set: {error}") from None
    return Mixture.of(settings, domains)


def _write(folder: Path, drawn: dict[Wanted, Drawn], facts: dict[str, Any]) -> dict[str, Any]:

    domains: dict[str, dict[str, dict[str, int]]] = {}
    for item, found in drawn.items():
        # Of the calibration split, a round takes the first; the others are its reserve.
        count = item.least if item.split == "calibration" else len(found.blocks)
        counts = {
            "sequences": count,
            "tokens": count * item.length,
            "documents": len(set().union(*found.documents[:count])),
            "available": found.available,
            "held": len(found.blocks),
        }
        domains.setdefault(item.domain, {})[item.split] = counts
    blocks = {f"{item.split}/{item.domain}": found.blocks for item, found in drawn.items()}
    # In the file as well as in the manifest, so that the digest is of the mixture too.
    mixture = json.dumps(facts.get("mixture"), sort_keys=True)
    save_file(blocks, folder / BLOCKS, metadata={"mixture": mixture})
    return write_manifest(folder, **facts, domains=domains)
