"""The engine's command line: `python -m pruneflow stage NAME`, called by dvc.yaml."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from pruneflow.compute.torchrun import is_first
from pruneflow.errors import InputError, PruneflowError, report
from pruneflow.process_environment import complete_environment

NEEDED = ("filelock", "pydantic", "torch", "transformers")


def main() -> int:
    """Run a stage; errors a user can act on are printed as one line."""
    parser = argparse.ArgumentParser(prog="python -m pruneflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stage = commands.add_parser("stage", help="run one stage of dvc.yaml")
    stage.add_argument("name", help="as in dvc.yaml, e.g. documents or round@r1")
    arguments = parser.parse_args()
    _use_project_python()
    complete_environment()
    try:
        from pruneflow.stages import run_stage_by_name
        from pruneflow.workspace import check_workspace

        check_workspace()
        return run_stage_by_name(arguments.name)
    except PruneflowError as error:
        if isinstance(error, InputError) and not is_first():
            return error.exit_code  # the first rank reports the same error
        return report(error)
    except KeyboardInterrupt:
        return 130


def _use_project_python() -> None:
    """Restart with the project's own Python if this one lacks the dependencies.

    `dvc repro` in a shell whose PATH does not begin with .venv/bin calls any `python` it finds.
    """
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return
    # DVC runs a queued experiment in a folder below the project's.
    folders = (folder / ".venv" for folder in (Path.cwd(), *Path.cwd().parents))
    project = next((each for each in folders if (each / "bin/python").is_file()), None)
    if project is not None and Path(sys.prefix).resolve() != project.resolve():
        python = str(project / "bin/python")
        os.execv(python, [python, "-m", "pruneflow", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
