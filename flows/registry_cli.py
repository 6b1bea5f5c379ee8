"""The commands about registered models: `pruneflow status | promote | rollback | ...`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pruneflow.workspace import check_workspace

if TYPE_CHECKING:
    from pruneflow.config import RegistrySettings

app = typer.Typer(rich_markup_mode=None)

ApprovedBy = Annotated[
    str | None, typer.Option("--approved-by", help="Who approves; kept in the model's history.")
]
Because = Annotated[str | None, typer.Option("--because", help="Why; kept in the history too.")]


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show which version is in production, and from which data; the candidate and the previous.

    Example: pruneflow status --json
    """
    settings = _settings()
    from tasks import promotion, registry

    promotion.make_whole(settings)
    versions = registry.status(settings)
    moves = promotion.history(settings) if any(versions.values()) else []
    if as_json:
        print(json.dumps({"model": settings.name, **versions, "history": moves}, indent=2))
        return
    print(f"model       {settings.name}")
    for alias, version in versions.items():
        print(f"{alias:<12}{_version_line(version)}")
        if alias == registry.PRODUCTION and version is not None:
            print(f"  model digest      {version.get('model_digest', 'unknown')}")
            print(f"  calibration set   {version.get('data_digest', 'unknown')}")
            print(f"  gates' decision   {version.get('decision_digest', 'unknown')}")
            print(f"  code              {_code_line(version)}")
            print(f"  MLflow run        {version['run_id']}")
    for move in moves[-1:]:
        why = f" ({move['why']})" if move["why"] else ""
        print(f"last move   {move['kind']} of version {move['version']}, {move['at']}, ", end="")
        print(f"by {move['by']}{why}")


@app.command()
def promote(
    version: Annotated[
        str | None, typer.Argument(help="Which version; the candidate when left out.")
    ] = None,
    approved_by: ApprovedBy = None,
    because: Because = None,
) -> None:
    """Put a version into production; the one in use is kept as `previous`.

    It must have been accepted by its own gates, and it must load and write, before the alias moves
    and after; else the alias is moved back. Safe to repeat.

    Example: pruneflow promote 3 --approved-by ada --because "smaller, and law is no worse"
    """
    settings = _settings()
    from tasks import promotion

    approval = promotion.Approval(approved_by, because)
    print(promotion.promote(settings, version, approval).sentence(settings.name))


@app.command()
def rollback(approved_by: ApprovedBy = None, because: Because = None) -> None:
    """Put the previous version back into production; a second rollback undoes the first.

    Example: pruneflow rollback --because "answers in French got worse"
    """
    settings = _settings()
    from tasks import promotion

    approval = promotion.Approval(approved_by, because)
    print(promotion.rollback(settings, approval).sentence(settings.name))


@app.command()
def restore(
    version: Annotated[str, typer.Argument(help="A version that was in production before.")],
    approved_by: ApprovedBy = None,
    because: Because = None,
) -> None:
    """Put any version back into production that was there before, however long ago.

    Example: pruneflow restore 1
    """
    settings = _settings()
    from tasks import promotion

    approval = promotion.Approval(approved_by, because)
    print(promotion.restore(settings, version, approval).sentence(settings.name))


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 5001,
) -> None:
    """Serve the version in production over HTTP, by MLflow's own server, until it is ended.

    What is promoted meanwhile is served after a restart. GET /ping says whether it is up; POST
    /invocations takes {"inputs": ["a prompt"], "params": {"max_new_tokens": 32}}.

    Example: pruneflow serve --port 5001
    """
    settings = _settings()
    from tasks import serving

    serving.serve(settings, port)


def _settings() -> "RegistrySettings":
    check_workspace()
    from pruneflow.config import load_settings

    return load_settings().registry


def _version_line(version: dict[str, str] | None) -> str:
    if version is None:
        return "none"
    digests = [version.get(key, "unknown")[:12] for key in ("model_digest", "data_digest")]
    return f"version {version['version']}, model {digests[0]}, calibration set {digests[1]}"


def _code_line(version: dict[str, str]) -> str:
    dirty = " with changes that are not committed" if version.get("git_dirty") == "true" else ""
    return f"{version.get('git_commit', 'unknown')}{dirty}"
