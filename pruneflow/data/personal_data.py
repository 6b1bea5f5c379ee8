"""Masking of e-mail addresses, phone numbers and secret keys.

Precision comes first: digits in sums, code and citations are kept. Phone numbers must be formatted
as such and valid for `phonenumbers`: `+44 20 7946 0958`; `020 7946 0958` in a language of a region
where it is valid; in English also `(212) 555-2368` and `212-555-2368`. Keys must have the format of
their issuer, mostly by the expressions of `detect_secrets`, or follow `secret_key =` or similar.
Names, postal addresses, passwords and account numbers are not masked.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module

import phonenumbers
from detect_secrets.plugins.base import RegexBasedDetector

from pruneflow.data.source_kinds import NO_LANGUAGE

KINDS = ("email", "phone", "key")

# Without artifactory, basic_auth and ip_public, which also match words in capitals, documentation
# examples and version numbers, and without npm, whose expression is quadratic in the line length.
_ISSUERS = (
    "aws",
    "azure_storage_key",
    "cloudant",
    "discord",
    "github_token",
    "gitlab_token",
    "ibm_cloud_iam",
    "ibm_cos_hmac",
    "jwt",
    "mailchimp",
    "openai",
    "pypi_token",
    "sendgrid",
    "slack",
    "softlayer",
    "square_oauth",
    "stripe",
    "telegram_token",
    "twilio",
)
_OTHERS = (
    re.compile(r"npm_[A-Za-z0-9]{36}"),
    re.compile(r"github_pat_[A-Za-z0-9_]{40,}"),
    re.compile(r"AIza[A-Za-z0-9_-]{35}"),
    re.compile(r"sk-(?:ant|proj)-[A-Za-z0-9_-]{24,}"),
    re.compile(
        r"(?i:secret|access|api|auth)[_ -]?(?i:access[_ -]?)?(?i:key|token)[\"']?\s*[:=]\s*[\"']?"
        r"(?=[A-Za-z/+=_-]*\d)(?=[\d/+=_-]*[A-Za-z])([A-Za-z0-9/+=_-]{20,})"
    ),
)

# Regions in which the national numbers of a language, which begin with 0, are validated.
_REGIONS = {
    "en": ("GB",),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE", "CH"),
    "nl": ("NL", "BE"),
    "it": ("IT",),
    "sv": ("SE",),
    "tr": ("TR",),
    "zh": ("CN", "TW"),
    "ja": ("JP",),
    "ko": ("KR",),
    "hi": ("IN",),
    "id": ("ID",),
    "uk": ("UA",),
}

_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}"
    r"(?![\w(\[])",
    re.ASCII,
)
_INTERNATIONAL = re.compile(
    r"(?<![\w)\]}+*/=^.-])(?<![=*/^<>-] )\+[1-9][\d ().\xa0-]{6,20}\d(?!\w)", re.ASCII
)
_AMERICAN = re.compile(
    r"(?<![\w.+*/=^-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}"
    r"(?![\w-]|\.\d)",
    re.ASCII,
)
_NATIONAL = re.compile(
    r"(?<![\w.,+*/=^)-])(?<![\d+*/=^-] )(?:\(0\d{1,4}\)|0\d{1,4})(?:[ /-]\d{2,8}){1,4}"
    r"(?![\w/-]|[.,]\d)",
    re.ASCII,
)
_BLOCK = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:(?!-----BEGIN)[\s\S]){0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s*[A-Za-z0-9+/=:]{16,}[^\S\n]*(?=\n|$))+(?:\s*[A-Za-z0-9+/=]+\Z)?)"
)
# The keys of all issuers contain such a sequence of letters and digits.
_LONG = re.compile(
    r"(?<![\w+/=.:-])(?=[A-Za-z_+/=.:-]*\d)(?=[\d_+/=.:-]*[A-Za-z])[\w+/=.:-]{16,}", re.ASCII
)
_REST = re.compile(r"[A-Za-z0-9_+/=-]*(?:\.[A-Za-z0-9_+/=-]+)*")
_MIN_KEY = 16


def mask_personal_data(text: str, language: str) -> tuple[str, dict[str, int]]:
    """Replace personal data by `<EMAIL>`, `<PHONE>` and `<KEY>`.

    Args:
        text: any text.
        language: its BCP-47 tag: no phone numbers in source code, American ones in English.

    Returns:
        The text, and the number of masks by kind (`KINDS`).
    """
    counts = dict.fromkeys(KINDS, 0)
    found = True
    while found:  # text next to a mask may match only after masking
        before = sum(counts.values())
        text, keys = _replace(text, list(_keys(text)), "<KEY>")
        text, emails = _EMAIL.subn("<EMAIL>", text) if "@" in text else (text, 0)
        phones = 0
        if language != NO_LANGUAGE:
            text, phones = _replace(text, list(_phones(text, language)), "<PHONE>")
        for kind, number in zip(KINDS, (emails, phones, keys), strict=True):
            counts[kind] += number
        found = sum(counts.values()) > before
    return text, counts


Span = tuple[int, int]


def _replace(text: str, spans: list[Span], by: str) -> tuple[str, int]:
    """Replace spans; overlapping ones count as one."""
    parts, end, count = [], 0, 0
    for start, stop in sorted(spans):
        if start >= end:
            parts += [text[end:start], by]
            count += 1
        end = max(end, stop)
    return ("".join([*parts, text[end:]]), count) if spans else (text, 0)


def _phones(text: str, language: str) -> Iterator[Span]:
    if "+" in text:
        for found in _INTERNATIONAL.finditer(text):
            yield from _numbers(found, None)
    spoken = language.split("-")[0]
    for region in _REGIONS.get(spoken, ()):
        for found in _NATIONAL.finditer(text):
            yield from _numbers(found, region)
    if spoken == "en":
        for found in _AMERICAN.finditer(text):
            yield from _numbers(found, "US")


def _numbers(found: re.Match[str], region: str | None) -> Iterator[Span]:
    for number in phonenumbers.PhoneNumberMatcher(found[0], region):
        yield found.start() + number.start, found.start() + number.end


def _keys(text: str) -> Iterator[Span]:
    if "PRIVATE KEY" in text:
        yield from (found.span() for found in _BLOCK.finditer(text))
    if max(map(len, text.split()), default=0) < _MIN_KEY:
        return
    done = 0
    for long in _LONG.finditer(text):
        if long.start() < done:
            continue
        start = text.rfind("\n", 0, long.start()) + 1
        done = text.find("\n", long.end())
        done = len(text) if done < 0 else done
        for expression in _expressions():
            for found in expression.finditer(text, start, done):
                span = _key_span(text, found)
                if span:
                    yield span


def _key_span(text: str, found: re.Match[str]) -> Span | None:
    """Return the span of the key itself; None inside a longer word."""
    start, end = found.span()
    for group in range(1, (found.re.groups or 0) + 1):
        if found[group] and len(found[group]) >= _MIN_KEY:
            start, end = found.span(group)
    before = text[start - 1 : start]
    if before.isascii() and before.isalnum():
        return None
    rest = _REST.match(text, end)
    return start, rest.end() if rest else end


@lru_cache(maxsize=1)
def _expressions() -> list[re.Pattern[str]]:
    modules = [import_module(f"detect_secrets.plugins.{name}") for name in _ISSUERS]
    known = [
        expression
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, RegexBasedDetector)
        and value.__module__ == module.__name__
        for expression in value().denylist
    ]
    return [*known, *_OTHERS]
