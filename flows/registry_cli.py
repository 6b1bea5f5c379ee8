"""The commands about registered models: `pruneflow status | promote | rollback | ...`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import AsJson, examples, one_of, print_json, versions
from pruneflow.workspace import check_workspace

if TYPE_CHECKING:
    from pruneflow.settings.pipeline import RegistrySettings
    from tasks.registry.promotion import Move

app = typer.Typer(rich_markup_mode=None)

ApprovedBy = Annotated[
    str | None, typer.Option("--approved-by", help="Who approves; kept in the model's history.")
]
Because = Annotated[str | None, typer.Option("--because", help="Why; kept in the model's history.")]


@app.command(epilog=examples("pruneflow status", "pruneflow status --json"))
def status(as_json: AsJson = False) -> None:
    """Show which version is in production, and what it came from."""
    settings = _settings()
    from tasks.registry.registered_model import (
        PENDING,
        PRODUCTION,
        history_of,
        read_registered_model,
    )

    model = read_registered_model(settings)
    if model is not None and PENDING not in model.tags:
        known, moves = model.by_alias(), history_of(model.tags)
    else:
        from tasks.registry import promotion, versions

        promotion.undo_killed_move(settings)
        known = versions.status(settings)
        moves = promotion.history(settings) if any(known.values()) else []
    if as_json:
        print_json({"model": settings.name, **known, "history": moves})
        return
    print(f"model       {settings.name}")
    for alias, version in known.items():
        print(f"{alias:<12}{_version_line(version)}")
        if alias == PRODUCTION and version is not None:
            print(f"  model digest      {version.get('model_digest', 'unknown')}")
            print(f"  calibration set   {version.get('data_digest', 'unknown')}")
            print(f"  gates' decision   {version.get('decision_digest', 'unknown')}")
            print(f"  code              {_code_line(version)}")
            print(f"  MLflow run        {version['run_id']}")
    for move in moves[-1:]:
        why = f" ({move['why']})" if move["why"] else ""
        print(f"last move   {move['kind']} of version {move['version']}, {move['at']}, ", end="")
        print(f"by {move['by']}{why}")


@app.command(
    epilog=examples(
        "pruneflow promote",
        'pruneflow promote 3 --approved-by ada --because "law is no worse"',
    )
)
def promote(
    version: Annotated[
        str | None,
        typer.Argument(
            help="Version number; the candidate by default.", autocompletion=one_of(versions)
        ),
    ] = None,
    approved_by: ApprovedBy = None,
    because: Because = None,
    as_json: AsJson = False,
) -> None:
    """Put a version into production, the candidate by default.

    The current one is kept as `previous`. The gates must have accepted the version, and it must
    load and generate text before and after the alias moves; otherwise the alias is moved back. Safe
    to repeat.
    """
    settings = _settings()
    from tasks.registry import promotion

    approval = promotion.Approval(approved_by, because)
    _print_move(promotion.promote(settings, version, approval), settings, as_json)


@app.command(
    epilog=examples(
        "pruneflow rollback", 'pruneflow rollback --because "answers in French got worse"'
    )
)
def rollback(
    approved_by: ApprovedBy = None, because: Because = None, as_json: AsJson = False
) -> None:
    """Put the previous version back into production.

    A second rollback undoes the first.
    """
    settings = _settings()
    from tasks.registry import promotion

    approval = promotion.Approval(approved_by, because)
    _print_move(promotion.rollback(settings, approval), settings, as_json)


@app.command(
    epilog=examples("pruneflow restore 1", 'pruneflow restore 1 --because "as before June"')
)
def restore(
    version: Annotated[
        str,
        typer.Argument(
            help="A version that was in production before.", autocompletion=one_of(versions)
        ),
    ],
    approved_by: ApprovedBy = None,
    because: Because = None,
    as_json: AsJson = False,
) -> None:
    """Put back any version that was in production before."""
    settings = _settings()
    from tasks.registry import promotion

    approval = promotion.Approval(approved_by, because)
    _print_move(promotion.restore(settings, version, approval), settings, as_json)


@app.command(epilog=examples("pruneflow serve", "pruneflow serve --port 8080"))
def serve(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 5001,
) -> None:
    """Serve the version in production over HTTP.

    Runs MLflow's model server until it is stopped; a version promoted meanwhile is served after a
    restart. GET /ping tells whether it is up; POST /invocations takes
    {"inputs": ["a prompt"], "params": {"max_new_tokens": 32}}.
    """
    settings = _settings()
    from tasks.registry import serving

    serving.serve(settings, port)


def _settings() -> "RegistrySettings":
    check_workspace()
    from pruneflow.settings.pipeline import load_settings

    return load_settings().registry


def _print_move(move: "Move", settings: "RegistrySettings", as_json: bool) -> None:
    if as_json:
        print_json({"model": settings.name, **asdict(move)})
    else:
        print(move.sentence(settings.name))


def _version_line(version: dict[str, str] | None) -> str:
    if version is None:
        return "none"
    digests = [version.get(key, "unknown")[:12] for key in ("model_digest", "data_digest")]
    return f"version {version['version']}, model {digests[0]}, calibration set {digests[1]}"


def _code_line(version: dict[str, str]) -> str:
    dirty = " with changes that are not committed" if version.get("git_dirty") == "true" else ""
    return f"{version.get('git_commit', 'unknown')}{dirty}"
