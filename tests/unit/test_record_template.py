"""Records from rows: the template, the group, and joined records."""

import numpy
import pytest

from pruneflow.data.record_template import (
    RecordFormat,
    Row,
    TextRecord,
    Unreadable,
    docstrings,
    fill,
)
from pruneflow.errors import InputError
from pruneflow.settings.base import check


def filled(*values: object, **settings: object) -> list[TextRecord | Unreadable]:
    rows = [Row(str(number), value) for number, value in enumerate(values, start=1)]
    return list(fill(rows, RecordFormat(**settings), 1000))


def test_fields_go_into_the_template():
    row = {"title": "One", "text": None, "lines": ["a", "b"], "n": 3, "0": "zero"}
    template = "{title}: {text} {{x}} {lines} {n} {0}"
    assert filled(row, template=template) == [TextRecord("One:  {x} a\nb 3 zero", "1")]


def test_an_empty_record_is_an_empty_text():
    assert [item.text for item in filled("", {"text": None}, "  \n")] == ["", "", ""]
    assert [item.text for item in filled("a", "", "b", join=2)] == ["", "a\n\nb"]


CONVERSATION = [
    {"role": "system", "content": None},
    {"role": "user", "content": [{"type": "text", "text": "Two\nlines?"}, {"type": "image"}]},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.parametrize(
    "messages", [CONVERSATION, [{"from": "user", "value": "Two\nlines?"}, CONVERSATION[2]]]
)
def test_a_conversation_is_a_paragraph_for_each_message(messages):
    expected = "user: Two\nlines?\n\nassistant: Yes."
    (record,) = filled({"messages": messages}, template="{messages}")
    assert record.text == expected
    assert filled(messages)[0].text == expected  # a line that is a conversation


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": 1}, "has a mapping, not text, in x"),
        ([{"a": 1}], "has a list of mappings that is not a conversation in x"),
        (
            [{"role": "user", "content": {"a": 1}}],
            "has a list of mappings that is not a conversation",
        ),
        ([{"role": "user"}], "has a list of mappings that is not a conversation"),
        ([*CONVERSATION, "more"], "has a mapping, not text, in x"),
        (b"bytes", "has bytes in x"),
        (["line", b"bytes"], "has bytes in x"),
        ([["a"], ["b"]], "has a value of type list, not text, in x"),
        (numpy.arange(3), "has a value of type ndarray, not text, in x"),
    ],
)
def test_what_is_no_text_is_never_written_as_python_would(value, problem):
    (found,) = filled({"x": value}, template="{x}")
    assert isinstance(found, Unreadable)
    assert found.problem.startswith(problem)


def test_the_group_is_what_related_records_share():
    rows = [{"title": "T", "text": "a"}, {"title": " T ", "text": "b"}, {"title": None, "text": ""}]
    assert [item.group for item in filled(*rows, group="{title}")] == ["T", "T", ""]
    assert [item.group for item in filled(*rows)] == ["", "", ""]


@pytest.mark.parametrize("expression", [r"^(.*?) -- ", r"^.*?(?= -- )"])
def test_a_group_can_be_found_inside_a_field(expression):
    rows = ["Cell -- its wall -- and more", "no title", "Cell -- its core"]
    groups = [item.group for item in filled(*rows, group="{text}", group_match=expression)]
    assert groups == ["Cell", "", "Cell"]


def test_consecutive_records_are_joined_within_their_group_without_duplicates():
    assert filled("a", "b", "a", "c", join=2) == [TextRecord("a\n\nb", "1"), TextRecord("c", "4")]
    rows = [{"text": text, "of": of} for text, of in ["ax", "bx", "cy", "dx", "ex"]]
    joined = filled(*rows, join=2, group="{of}")
    assert joined == [
        TextRecord("a\n\nb", "1", "x"),
        TextRecord("c", "3", "y"),
        TextRecord("d\n\ne", "4", "x"),
    ]


def test_equal_records_that_are_not_joined_are_kept():
    assert len(filled("a", "a")) == 2


def test_unreadable_rows_pass_through_and_do_not_interrupt_joining():
    rows = [Row("1", "a"), Unreadable("2", "is bad"), Row("3", "b")]
    assert list(fill(rows, RecordFormat(join=2), 1000)) == [rows[1], TextRecord("a\n\nb", "1")]


def test_an_expression_can_be_removed():
    assert filled("No. 3: text", remove=r"^No\. \d+: ")[0].text == "text"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "plain"}, "names no field"),
        ({"template": "{text.upper}"}, "plain names"),
        ({"template": "{text!r}"}, "plain names"),
        ({"template": "{text"}, "for a brace"),
        ({"group": "plain"}, "group 'plain' names no field"),
        ({"group": "{text}", "group_match": "("}, "group_match '(' is not a regular expression"),
        ({"group_match": "a"}, "group_match has no effect without group"),
        ({"remove": "("}, "not a regular expression"),
        ({"separator": r"\s*"}, "matches an empty text"),
        ({"separator": ""}, "matches an empty text"),
        ({"join": 0}, "join"),
    ],
)
def test_a_format_that_cannot_be_used_is_refused(settings, words):
    with pytest.raises(InputError) as error:
        check(RecordFormat, settings, "here")
    assert words in str(error.value)


def test_a_missing_field_says_which_setting_to_correct():
    (bad,) = filled({"title": "x"})
    assert (bad.problem, bad.fix) == ("has no field text (it has title)", "correct `template`")
    (bad,) = filled({"text": "x"}, group="{title}")
    assert bad.fix == "correct `group`"


def test_docstrings_of_a_file_that_is_not_python_are_unreadable():
    assert docstrings(b'"""Hello."""\n', "a.py") == TextRecord("Hello.", "a.py")
    assert docstrings(b"x = 1\n", "a.py") == TextRecord("", "a.py")
    assert "is not Python source" in docstrings(b"def (", "a.py").problem
