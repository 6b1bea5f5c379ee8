"""Text cleaning: repaired encodings, normalised characters, truncation, duplicate keys."""

import hashlib
import re
import unicodedata
import zlib

import ftfy

# All control characters except tab and newline; some of them break terminals and tables.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_LINE_END = re.compile("\r\n|\r|\u2028|\u2029|\x0c")
_BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")
_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_BINARY_SHARE = 0.05
"""Share of control and replacement characters above which a text counts as binary."""


def fix_mojibake(text: str) -> str:
    """Fix mojibake ("FranÃ§ois"), line by line; typographic quotes and the like are kept."""
    if text.isascii():
        return text
    if _SURROGATE.search(text):
        text = ftfy.fixes.fix_surrogates(text)
    return "\n".join(
        line if line.isascii() else ftfy.fix_encoding(line) for line in text.split("\n")
    )


def clean(text: str) -> str:
    """Normalise to NFC with plain line ends; strip control characters and surrounding space."""
    return _CONTROL.sub("", _LINE_END.sub("\n", unicodedata.normalize("NFC", text))).strip()


def clean_code(text: str) -> str:
    """Normalise the line ends of source code and strip control characters; nothing else."""
    plain = _CONTROL.sub("", _LINE_END.sub("\n", _SURROGATE.sub("\ufffd", text)))
    return plain.rstrip().lstrip("\n")


def is_binary(text: str) -> bool:
    """Return whether too many characters are not text, as in decoded binary data."""
    return len(_BINARY.findall(text)) > MAX_BINARY_SHARE * len(text)


def cut(text: str, characters: int) -> str:
    """Truncate a text to at most `characters`, at the end of a line if possible."""
    if len(text) <= characters:
        return text
    end = text.rfind("\n", 0, characters + 1)
    return text[: end if end > 0 else characters].rstrip()


def compressed_share(text: str) -> float:
    """Return the zlib-compressed size of a text as a share of its size in bytes."""
    content = text.encode()
    # Raw deflate: the header of six bytes would distort short texts.
    compressor = zlib.compressobj(wbits=-15)
    return (len(compressor.compress(content)) + len(compressor.flush())) / max(1, len(content))


def sha256_text(text: str) -> str:
    """Return the hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def duplicate_key(text: str) -> str:
    """Return a key that is equal for texts that differ only in letter case and white space."""
    return sha256_text(" ".join(text.casefold().split()))
