"""The commands about calibration data: `pruneflow data refresh | diff`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_options import AsJson, examples, print_json
from pruneflow.workspace import check_workspace

if TYPE_CHECKING:
    from pruneflow.data.sources import LockChange

app = typer.Typer(
    help="Pin the sources of text, and show how the text changed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog=examples("pruneflow data refresh", "pruneflow data refresh --json"))
def refresh(as_json: AsJson = False) -> None:
    """Pin the current state of every source in data/sources.lock.

    Pins the sha256 or the revision of every source, and Python's version. Hub datasets need a
    network: without one, earlier revisions are kept and new datasets are listed as unresolved.
    """
    check_workspace()
    from pruneflow import paths
    from pruneflow.data.sources import refresh_lock

    change = refresh_lock(paths.DOMAINS_FILE, paths.SOURCES_LOCK, paths.LM_EVAL)
    if as_json:
        print_json(asdict(change))
    else:
        print(_lock_text(change))


@app.command(epilog=examples("pruneflow data diff HEAD", "pruneflow data diff HEAD~1 --json"))
def diff(
    revision: Annotated[str, typer.Argument(help="A git commit, branch or tag, e.g. HEAD~1.")],
    as_json: AsJson = False,
) -> None:
    """Show how the calibration data differs from that of a commit.

    Shows documents added and removed by domain and source, tokens of the calibration set by domain,
    and licences gained and lost. The commit must contain the dvc.lock of a run.
    """
    check_workspace()
    from tasks.dvc.data_history import changes_since

    changes = changes_since(revision)
    if as_json:
        print_json(changes)
    else:
        print("\n".join(_diff_lines(changes)))


def _lock_text(change: "LockChange") -> str:
    lines = [f"{verb:<12}{name}" for verb, names in asdict(change).items() for name in names]
    if not (change.added or change.changed or change.removed):
        lines.append("data/sources.lock is unchanged")
    if change.unresolved:
        lines.append(
            f"{len(change.unresolved)} hub datasets are not pinned and cannot be read: "
            "run this again with a network"
        )
    return "\n".join(lines)


def _diff_lines(changes: dict[str, Any]) -> list[str]:
    lines = [
        f"since {changes['revision']} ({changes['commit'][:12]}): "
        f"{changes['added']} documents added, {changes['removed']} removed"
    ]
    for name, facts in changes["domains"].items():
        tokens = facts["tokens"]
        lines.append(
            f"{name}: +{facts['added']} -{facts['removed']} documents, "
            f"{tokens['before']} -> {tokens['after']} tokens{_licence_note(facts['licences'])}"
        )
        lines += [
            f"  {source}: +{counts['added']} -{counts['removed']}"
            for source, counts in facts["sources"].items()
        ]
    for verb, licences in changes["licences"].items():
        lines.append(f"licences {verb}: {', '.join(licences) or 'none'}")
    if not changes["set_is_current"]:
        lines.append("the calibration set is outdated: run `dvc repro calibration`")
    return lines


def _licence_note(licences: dict[str, list[str]]) -> str:
    notes = [f"+{name}" for name in licences["gained"]] + [f"-{name}" for name in licences["lost"]]
    return f", licences {' '.join(notes)}" if notes else ""
