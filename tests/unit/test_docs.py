"""The documentation builds without a warning, follows the code, and sends nobody astray."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs.generate import FOLDER, pages
from flows.cli import app
from tests.markdown import PAGES, ROOT, anchors, blocks, commands, links, quoted

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\.\.\.|…")


def by_path(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [*sphinx, "-d", str(tmp_path / "doctrees"), "docs", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "neuron_multiple" in (tmp_path / "site/reference/settings.html").read_text()


@pytest.mark.parametrize("name", pages())
def test_generated_pages_are_those_of_the_code_and_the_results(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


def test_pictures_are_small_and_all_shown() -> None:
    pictures = set((ROOT / "docs/images").iterdir())
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert pictures <= shown
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{by_path(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{by_path(page)} links to {link}, outside the project"
        if anchor:
            assert anchor in anchors(target), f"{by_path(page)} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_every_block_of_code_names_its_language(page: Path) -> None:
    assert all(language for language, _ in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_commands_and_options_exist(page: Path) -> None:
    shown = commands(page) + [part for code in quoted(page) for part in code.split("&&")]
    assert [fault for command in shown if (fault := fault_of(command))] == []


@pytest.mark.parametrize(
    "command",
    ["pruneflow prune", "pruneflow data differ", "pruneflow run --fast",
     "pruneflow plan --ratios 0.1", "make haste", "make"],
)  # fmt: skip
def test_a_command_or_option_that_is_not_there_is_found(command: str) -> None:
    assert f"{command}: there is no" in (fault_of(command) or "")


def fault_of(command: str) -> str | None:
    """What a command names that is not there; None where all is, or the command is not ours."""
    words = shlex.split(command, comments=True)
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if words[1:] and words[1] in targets else f"{command}: there is no such target"
    if words[:1] != ["pruneflow"]:
        return None
    at: Any = get_command(app)
    for word in words[1:]:
        if word.lstrip("[").startswith("--"):
            options = {"--help", *(name for each in at.params for name in each.opts)}
            if word.strip("[]") not in options:
                return f"{command}: there is no option {word}"
        elif hasattr(at, "commands"):
            if PLACEHOLDER.fullmatch(word):
                return None
            if word not in at.commands:
                return f"{command}: there is no command {word}"
            at = at.commands[word]
    return None


def test_make_help_lists_every_command_of_the_makefile() -> None:
    # `make test` starts this test: a make within a make would say which directory it enters.
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split()) - {"postgresql", "chromium"}  # steps of tests


TIMES = "\N{MULTIPLICATION SIGN}"


def test_what_the_readme_says_of_others_is_the_recorded_comparison() -> None:
    rows = json.loads((ROOT / "benchmarks/results/side_by_side.json").read_text())["rows"]
    ours = ("uniform", "uniform_one_shot", "per_layer")
    readme = (ROOT / "README.md").read_text()
    for theirs in (False, True):
        for ratio in (0.2, 0.5):
            means = {
                row["row"]: row["perplexity_ratio_mean"] for row in rows if row["ratio"] == ratio
            }
            best = min((name for name in means if (name not in ours) is theirs), key=means.get)
            assert best == ("osscar" if theirs else "per_layer")
            assert len(means) == 10 + len(ours)
            assert f"{means[best]:.3f}" in readme, best


def test_the_table_of_the_readme_is_the_recorded_demo() -> None:
    demo = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    rows = {
        cells[0]: cells[1:]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| ")
        and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    for domain, found in demo["perplexity"]["domains"].items():
        dense, pruned, ratio = rows[f"perplexity, {domain}"]
        assert (dense, pruned) == (f"{found['dense']:.1f}", f"{found['pruned']:.1f}")
        value, low, high = (f"{found['ratio'][key]:.2f}" for key in ("value", "low", "high"))
        assert ratio == f"{TIMES} {value} ({low} to {high})"
    measurable = {name: task for name, task in demo["tasks"].items() if task["measurable"]}
    shown = {name.split()[0].lower(): cells for name, cells in rows.items() if "accuracy" in name}
    assert shown.keys() == measurable.keys()
    for name, task in measurable.items():
        accuracies = (f"{task[side]['value']:.1%}" for side in ("dense", "pruned"))
        assert shown[name][:2] == [*accuracies]
        assert shown[name][2].startswith(f"{task['retention']['value']:.0%} kept")
    for what, key in (("prefill", "prefill"), ("decode", "decode")):
        row = next(cells for name, cells in rows.items() if name.startswith(what))
        assert row[2].startswith(f"{TIMES} {demo['latency']['speedup'][key]['median']:.2f}")
