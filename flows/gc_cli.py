"""The command that frees space: `pruneflow gc`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import AsJson, examples, print_json
from pruneflow.workspace import check_workspace

if TYPE_CHECKING:
    from tasks.gc.removable import Removable
    from tasks.gc.survey import Survey

app = typer.Typer(rich_markup_mode=None)

# Heading of each kind, and whether its items are listed by name.
_HEADINGS = {
    "version": ("versions without an alias", True),
    "logged model": ("models that no version names", True),
    "deleted run": ("files of runs deleted in MLflow", True),
    "round": ("rounds that no stage writes", True),
    "leftover": ("leftovers of killed processes", True),
    "cache entry": ("entries of DVC's cache", False),
}


@app.command(
    epilog=examples("pruneflow gc", "pruneflow gc --keep-versions 2 --json", "pruneflow gc --yes")
)
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    keep_versions: Annotated[
        int, typer.Option(min=0, help="Number of versions without an alias to keep.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what is no longer needed, and remove it after confirmation.

    Registered versions without an alias are removed with their model files: `pruneflow restore`
    cannot bring them back. Everything that the current dvc.lock or that of any commit names stays,
    and so does DVC's remote. Without --yes it asks; without a terminal, or with --json, it only
    shows.
    """
    check_workspace()
    from pruneflow.settings.pipeline import load_settings
    from tasks.gc import survey

    settings = load_settings()
    with survey.survey(settings, keep_versions) as seen:
        if not as_json:
            _show(seen)
        if yes:
            survey.remove(seen.found)
    removed = yes
    if seen.found and not yes and not as_json and sys.stdin.isatty():
        removed = typer.confirm("Remove all this?")
        if removed:
            # Nothing was locked while waiting for the answer: keep what has changed since.
            with survey.survey(settings, keep_versions) as now:
                survey.remove(thing for thing in now.found if thing in seen.found)
    if as_json:
        print_json(_facts(seen, removed))
    elif seen.found:
        print("removed" if removed else "nothing was removed: use `pruneflow gc --yes`")


def _show(seen: "Survey") -> None:
    from rich.filesize import decimal

    for kind, (heading, named) in _HEADINGS.items():
        things = [thing for thing in seen.found if thing.kind == kind]
        if things:
            print(f"{heading:<33}{len(things):>7}{decimal(_size(things)):>12}")
        for thing in things if named else ():
            print(f"  {thing.name:<38}{decimal(thing.size):>12}")
        if things and kind == "version":
            print("  `pruneflow restore` cannot bring them back")
    total = decimal(_size(seen.found))
    print(f"{'total':<33}{len(seen.found):>7}{total:>12}" if seen.found else "nothing to remove")
    for note in seen.notes:
        print(note)


def _facts(seen: "Survey", removed: bool) -> dict[str, object]:
    things = [{"kind": thing.kind, "name": thing.name, "bytes": thing.size} for thing in seen.found]
    return {"removed": removed, "bytes": _size(seen.found), "found": things, "notes": seen.notes}


def _size(things: "list[Removable]") -> int:
    return sum(thing.size for thing in things)
