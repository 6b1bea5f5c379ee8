"""The commands that only inspect: `pruneflow doctor | compare`."""

import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli_options import AsJson, examples, models, one_of, print_json
from flows.flow_runner import set_environment
from pruneflow.workspace import check_workspace

app = typer.Typer(rich_markup_mode=None)

UNFIT = 2
_INDENT = 20


@app.command(epilog=examples("pruneflow doctor", "pruneflow doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Check whether a run can succeed here, and what to fix.

    Checks versions, settings, sources, stores, processor, memory, disk and git. Each line is marked
    ok, warning or problem, and names the fix.

    Exit code: 0 a run can start, 2 a problem must be fixed first.
    """
    check_workspace()
    set_environment()
    from tasks.doctor.checks import PROBLEM, WARNING, diagnose

    findings = []
    for finding in diagnose():
        findings.append(finding)
        if not as_json:
            _print_line(f"{finding.status:<9}{finding.check:<{_INDENT - 9}}{finding.message}")
    problems = sum(finding.status == PROBLEM for finding in findings)
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        warnings = sum(finding.status == WARNING for finding in findings)
        print(f"{problems} problems to fix, {warnings} warnings")
    if problems:
        raise typer.Exit(UNFIT)


Model = Annotated[
    str,
    typer.Argument(
        help="A version's number or alias, a round, dense, or model (the delivered model).",
        autocompletion=one_of(models),
    ),
]


@app.command(
    epilog=examples(
        "pruneflow compare previous production",
        "pruneflow compare r1 r3",
        "pruneflow compare 2 model --json",
    )
)
def compare(a: Model, b: Model, as_json: AsJson = False) -> None:
    """Compare two versions, or two rounds, side by side.

    Shows size, perplexity, accuracy, speed, health, the settings that differ, the digests, and what
    was not measured for one of them.
    """
    check_workspace()
    from pruneflow.judge.model_comparison import side_by_side
    from pruneflow.report.model_comparison_table import side_table
    from pruneflow.settings.pipeline import load_settings
    from tasks.registry.named_models import find_side

    settings = load_settings()
    found = side_by_side(find_side(a, settings), find_side(b, settings), settings.evaluation)
    if as_json:
        print_json(found.to_json())
        return
    from rich.console import Console

    Console().print(side_table(found))


def _print_line(line: str) -> None:
    """Print a line, wrapped on a terminal but not in a log."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(
            line,
            width,
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    print(line, flush=True)
