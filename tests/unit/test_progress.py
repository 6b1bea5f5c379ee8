"""Progress is a bar on a terminal, and plain lines with the time left in a log."""

import re

import pytest

from pruneflow import progress
from pruneflow.progress import track


def test_a_log_gets_plain_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert list(track(iter(range(10)), "score r1", total=10)) == list(range(10))
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.strip()]
    assert len(lines) >= 11  # one per item, and the end
    for line in lines:
        assert re.fullmatch(
            r"score r1: \d+/10 \(\d+%\), \d\d:\d\d elapsed, (\d\d:\d\d|\?) remaining", line
        ), line
    assert lines[-1].startswith("score r1: 10/10 (100%)")


def test_a_log_of_quick_work_has_its_start_and_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(track(range(3), "quick")) == [0, 1, 2]
    first, last = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line]
    assert first.startswith("quick: 0/3 (0%)") and last.startswith("quick: 3/3 (100%)")


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(track(range(3), "score r1"))
    assert re.search(r"score r1: 100%\|.*\| 3/3 \[", capsys.readouterr().err)
