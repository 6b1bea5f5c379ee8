"""What is done to every text before it is judged: repair, plain characters, length, repetition."""

import hashlib
import re
import unicodedata
import zlib

import ftfy

# Control characters but tab and newline; the NUL and escape codes that break terminals and tables.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_LINE_END = re.compile("\r\n|\r|\u2028|\u2029|\x0c")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")
_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_NO_TEXT_SHARE = 0.05
"""Share of control and replacement characters above which a text is binary."""


def repair(text: str) -> str:
    """Undo wrong decodings ("FranÃ§ois"), line by line; typographic quotes and the like stay."""
    if text.isascii():
        return text

    if _SURROGATE.search(text):
        text = ftfy.fixes.fix_surrogates(text)
    return "\n".join(
        line if line.isascii() else ftfy.fix_encoding(line) for line in text.split("\n")
    )


def clean(text: str) -> str:
    """Normalise to NFC, with plain line ends, no control characters and no space at the ends."""
    return _CONTROL.sub("", _LINE_END.sub("\n", unicodedata.normalize("NFC", text))).strip()


def clean_code(text: str) -> str:
    """Give source code plain line ends, and no control characters; else it stays as it is."""
    plain = _CONTROL.sub("", _LINE_END.sub("\n", _SURROGATE.sub("\ufffd", text)))
    return plain.rstrip().lstrip("\n")


def is_binary(text: str) -> bool:
    """Return whether so many characters are no text's that something else was decoded."""
    return len(_NO_TEXT.findall(text)) > MAX_NO_TEXT_SHARE * len(text)


def cut(text: str, characters: int) -> str:
    """Shorten a text to at most `characters`, at a line end where there is one."""
    if len(text) <= characters:
        return text
    end = text.rfind("\n", 0, characters + 1)
    return text[: end if end > 0 else characters].rstrip()


def compressed_share(text: str) -> float:
    """Return the size that zlib makes of a text's bytes, as a share of theirs."""
    content = text.encode()
    # Raw: the frame of six bytes says nothing of a short text.
    packer = zlib.compressobj(wbits=-15)
    return (len(packer.compress(content)) + len(packer.flush())) / max(1, len(content))


def sha256_text(text: str) -> str:
    """Return the hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def duplicate_key(text: str) -> str:
    """Return what two equal documents share: letter case and white space do not count."""
    return sha256_text(" ".join(text.casefold().split()))
