"""Bits per byte count the bytes of the text, however the tokenizer cuts it."""

import json
import math

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from pruneflow.errors import InputError
from pruneflow.measure.perplexity import bytes_by_token, with_bytes

TEXT = "Ein Maß Öl, 3 €, 漢字 and 😀: the quick brown fox."


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: U+2581 for a space, single bytes for what is not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox, Maß and Öl"] * 9, trainer)
    # The trainer takes only special tokens from outside; in Llama's file the bytes are plain ones.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:2]
    plain = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", unk_token="<unk>")


def total(tokenizer, ids):
    lengths = bytes_by_token(tokenizer, set(ids))
    return sum(lengths[token] for token in ids)


def test_the_tokens_of_a_byte_level_vocabulary_add_up_to_the_text(tiny_tokenizer):
    ids = tiny_tokenizer(TEXT)["input_ids"]
    assert len(ids) > 20
    assert total(tiny_tokenizer, ids) == len(TEXT.encode())


def test_the_tokens_of_a_sentencepiece_vocabulary_add_up_to_the_text(sentencepiece):
    ids = sentencepiece(TEXT, add_special_tokens=False)["input_ids"]
    names = sentencepiece.convert_ids_to_tokens(ids)
    assert "<0xE6>" in names and any("\u2581" in name for name in names)
    assert total(sentencepiece, ids) == len(TEXT.encode())


def test_special_tokens_stand_for_no_text_and_added_ones_for_their_own(sentencepiece):
    sentencepiece.add_tokens([AddedToken("grün", special=False)])
    added = sentencepiece.convert_tokens_to_ids("grün")
    lengths = bytes_by_token(sentencepiece, [sentencepiece.eos_token_id, added])
    assert lengths == {sentencepiece.eos_token_id: 0, added: 5}


def test_bits_per_byte_by_hand(tiny_tokenizer):
    """The first token of a window is not predicted, so its bytes do not count."""
    ids = tiny_tokenizer("abcd" * 10)["input_ids"]
    window = torch.tensor([[*ids, tiny_tokenizer.eos_token_id]])
    loss = {"nll": 30.0, "tokens": window.shape[1] - 1, "perplexity": 2.0}
    counted = with_bytes({"law": loss}, {"law": window}, tiny_tokenizer)["law"]
    assert counted["bytes"] == 40 - total(tiny_tokenizer, ids[:1])
    assert counted["bits_per_byte"] == pytest.approx(30 / math.log(2) / counted["bytes"])
    assert counted["nll"] == 30


def test_a_domain_of_special_tokens_alone_is_refused(tiny_tokenizer):
    end = torch.full((1, 4), tiny_tokenizer.eos_token_id)
    loss = {"nll": 1.0, "tokens": 3, "perplexity": 1.4}
    with pytest.raises(InputError, match="domain law holds no text"):
        with_bytes({"law": loss}, {"law": end}, tiny_tokenizer)
