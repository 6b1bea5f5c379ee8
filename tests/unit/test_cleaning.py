import hashlib
from collections import Counter

import pytest

from pruneflow.data.cleaning import (
    clean,
    clean_code,
    compressed_share,
    cut,
    duplicate_key,
    fix_mojibake,
    is_binary,
)
from pruneflow.data.contamination import QuestionNgrams
from pruneflow.data.document_filter import filter_record
from pruneflow.data.languages import check_source_language, detected_language
from pruneflow.data.personal_data import mask_personal_data
from pruneflow.data.record_template import TextRecord
from pruneflow.errors import InputError
from pruneflow.settings.calibration import DocumentSettings

ENGLISH = (
    "The harbour was quiet that morning, and nobody on the bridge had noticed the small boat "
    "that came in with the tide before the sun was up."
)
FRENCH = (
    "Le port était calme ce matin-là, et personne sur le pont n'avait remarqué le petit bateau "
    "qui était entré avec la marée avant le lever du soleil."
)
CHINESE = (
    "港口那天早上很安静。桥上没有人注意到太阳升起之前随着潮水进来的那条小船。"
    "直到有人大声喊叫起来。大家才跑过去看。"
)
KEY_BLOCK = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7b2\nq1w2e3r4t5y6u7i8o9p0AA==\n"
    "-----END RSA PRIVATE KEY-----"
)


def examined(text: str, language: str = "en", **changes):
    settings = DocumentSettings(domains=["tests"], **changes)
    record = TextRecord(text, "tests.jsonl, line 1")
    return filter_record(record, language, settings, QuestionNgrams({}, [], 0))


def test_mojibake_is_fixed_and_typography_is_kept():
    text = "FranÃ§ois paid Â£10 — “dear”, she\u2019d said, ﬁrst \uff21 &amp; …"
    assert fix_mojibake(text) == "François paid £10 — “dear”, she\u2019d said, ﬁrst \uff21 &amp; …"
    assert fix_mojibake("plain\nÂ£5\nnaïve") == "plain\n£5\nnaïve"


def test_lone_surrogates_are_replaced():
    assert fix_mojibake("smile \ud83d\ude00 and \ud83d") == "smile 😀 and \ufffd"
    assert clean_code("x = '\ud83d'").encode() == "x = '\ufffd'".encode()


def test_clean_removes_control_characters_and_composes_accents():
    assert clean("\ufeff e\u0301t\x00\x1b[0m\r\n\tend \n") == "ét[0m\n\tend"


def test_code_loses_only_control_characters():
    code = "\ufeff\n    x = 'e\u0301'  # Â£\r\n\x0c    y\x00 = 1\n\n"
    assert clean_code(code) == "    x = 'e\u0301'  # Â£\n\n    y = 1"
    assert not examined(code * 4, "zxx").repaired


@pytest.mark.parametrize(
    ("text", "binary"),
    [
        (ENGLISH, False),
        ("a\tb\r\nc\x0c", False),
        ("\x89PNG\x1a\x00\x00\x00IHDR", True),
        ("\ufffd\ufffdJFIF\ufffd", True),
        ("", False),
    ],
)
def test_binary_content_is_detected_by_its_characters(text, binary):
    assert is_binary(text) is binary


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("abc\ndef", 7, "abc\ndef"),
        ("abc\ndef", 6, "abc"),
        ("abc\ndef", 3, "abc"),
        ("abcd", 2, "ab"),
    ],
)
def test_cut_keeps_complete_lines_if_possible(text, characters, expected):
    assert cut(text, characters) == expected


def test_repetition_is_measured_by_compression():
    assert compressed_share("spam " * 40) < 0.1
    assert compressed_share(ENGLISH) > 0.5
    assert examined("spam and eggs, " * 40).reason == "repetitive"
    assert examined("spam and eggs, " * 40, min_compressed_share=0).reason == ""


def test_the_duplicate_key_ignores_case_and_white_space():
    assert duplicate_key("One  Two\n") == duplicate_key("one two")
    assert duplicate_key("one two") == hashlib.sha256(b"one two").hexdigest()


@pytest.mark.parametrize(
    ("text", "language", "detected"),
    [
        (FRENCH, "en", "fr"),
        (ENGLISH, "fr", "en"),
        (CHINESE, "en", "zh"),
        (ENGLISH, "en-GB", "en-GB"),
        (FRENCH, "fr", "fr"),
        (CHINESE, "zh-Hans", "zh-Hans"),
        (CHINESE, "yue", "yue"),
        ("too short to tell", "en", ""),
        ("1 + 2 = 3; " * 20, "en", ""),
        (ENGLISH, "zxx", ""),
        (ENGLISH, "tlh", ""),
    ],
)
def test_another_language_is_detected_in_texts_that_are_long_enough(text, language, detected):
    assert detected_language(text, language, 0.95) == detected


def test_a_document_in_another_language_is_dropped_unless_disabled():
    candidate = examined(FRENCH)
    assert (candidate.reason, candidate.detail) == ("wrong_language", "fr")
    assert examined(FRENCH, language_confidence=1).reason == ""
    assert examined(FRENCH, "zxx").reason == ""


def test_a_long_text_is_judged_by_more_than_its_beginning():
    german = "Der Gärtner wartete den ganzen Winter, denn der Boden war noch viel zu hart. "
    mixed = ENGLISH * 2 + german * 30
    assert detected_language(mixed, "en", 0.95) == "de"


def test_a_language_that_cannot_be_detected_is_logged(caplog):
    check_source_language("news", "a.jsonl", "xx", Counter())
    assert "language xx cannot be detected" in caplog.text


def test_a_source_in_another_language_is_refused():
    found = Counter({"fr": 4, "en": 5, "de": 1})
    check_source_language("letters", "a.txt", "fr", found)
    with pytest.raises(InputError, match=r"a.txt has language fr, but 6 of 10 documents are en"):
        check_source_language("letters", "a.txt", "fr", Counter({"fr": 3, "en": 6, "de": 1}))
    check_source_language("letters", "a.txt", "fr", Counter({"en": 4}))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to <EMAIL>."),
        ("邮箱jane@example.cn。", "邮箱<EMAIL>。"),
        ("Call +44 20 7946 0958 or (212) 555-2368.", "Call <PHONE> or <PHONE>."),
        ("1-800-555-1234, +14155552671", "<PHONE>, <PHONE>"),
        ("Ring 020 7946 0958 (or (020) 7946 0959).", "Ring <PHONE> (or <PHONE>)."),
        ("api_key: Zm9vYmFyMTIzNDU2Nzg5MA==", "api_key: <KEY>"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id <KEY>."),
        ("密钥AKIAIOSFODNN7EXAMPLE。", "密钥<KEY>。"),
        ('aws_secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"', 'aws_secret_key = "<KEY>"'),
        (f"token=ghp_{'a1B2' * 9}", "token=<KEY>"),
        ("xoxb-12345-67890-AbCdEfGhIj", "<KEY>"),
        (f"npm_{'a1B2' * 9} and AIza{'Sy_0-' * 7}.", "<KEY> and <KEY>."),
        (f"sk_live_{'abcd1234' * 3};", "<KEY>;"),
        (f"sk-{'a1b2c3d4e5' * 2}T3BlbkFJ{'a1b2c3d4e5' * 2}", "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N.", "<KEY>."),
        (f"a\n{KEY_BLOCK}\nb", "a\n<KEY>\nb"),
        (f"a\n{KEY_BLOCK[:-45]}", "a\n<KEY>"),
        (f"a\n{KEY_BLOCK[:-35]}\nthe end", "a\n<KEY>\nthe end"),
    ],
)
def test_personal_data_is_masked_and_counted(text, masked):
    found, counts = mask_personal_data(text, "en")
    assert found == masked
    assert {kind: masked.count(f"<{kind.upper()}>") for kind in counts} == counts


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("347 U.S. 483 (1954), 42 U.S.C. § 1983, 123-45-6789", "en"),
        ("5+4567890123 = 4567890128 and x = +4567890123", "en"),
        ("3.14159-265-3589, 2024-01-15, 10.1000/182", "en"),
        ("number = (212) + 555-2368; t = '+44 20 7946 0958'", "zxx"),
        ("@decorator\nx @ w, x@w.mean(), a @ b", "zxx"),
        ("(212) 555-2368", "fr"),
        ("030 901820", "en"),
        ("05 10 15 20 25, 01-02-2003, 0-306-40615-2, 0 1234 56789", "en"),
        ("api_key = settings.a_long_name_of_2_words", "zxx"),
        ("d41d8cd98f00b204e9800998ecf8427e and sys.version_info.releaselevel2", "zxx"),
        ("It starts with -----BEGIN RSA PRIVATE KEY----- as a rule.", "en"),
        (CHINESE, "zh"),
    ],
)
def test_other_text_is_not_masked(text, language):
    assert mask_personal_data(text, language) == (text, {"email": 0, "phone": 0, "key": 0})


def test_national_numbers_are_those_of_the_language():
    text = "Tel. 0171 1234567 oder 030 901820"
    assert mask_personal_data(text, "de")[0] == "Tel. <PHONE> oder <PHONE>"
    assert mask_personal_data("Appelez le 01 42 68 53 00.", "fr")[0] == "Appelez le <PHONE>."


def test_a_masked_text_has_nothing_left_to_mask():
    text = "+44 20 7946 0958+44 20 7946 0959 a@b.example.com(c@d.example.com "
    once, counts = mask_personal_data(text, "en")
    assert sum(counts.values()) > 0
    assert mask_personal_data(once, "en") == (once, dict.fromkeys(counts, 0))


def test_the_setting_masks_drops_or_keeps_personal_data():
    text = f"{ENGLISH} Ask jane@example.org."
    assert examined(text).text.endswith("Ask <EMAIL>.")
    assert examined(text).masks == {"email": 1, "phone": 0, "key": 0}
    drop = examined(text, personal_data="drop")
    assert (drop.reason, drop.detail) == ("personal_data", "email")
    assert "jane@" not in drop.excerpt
    assert examined(text, personal_data="keep").text == text


def test_a_mask_never_makes_a_text_too_long():
    text = "a@b.co " * 20
    assert len(examined(text, max_characters=139, min_characters=1).text) <= 139


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty"), (" \n\x00 ", "binary"), ("\x0b \t", "empty"), ("short", "too_short")],
)
def test_empty_binary_and_short_texts_are_dropped_with_a_reason(text, reason):
    assert examined(text).reason == reason
