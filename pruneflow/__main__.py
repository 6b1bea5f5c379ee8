"""The engine's own command: `python -m pruneflow stage NAME`, what dvc.yaml calls."""

import argparse
import sys

from pruneflow.errors import PruneflowError


def main() -> int:
    """Run a stage, or pin the data sources; an error a user can act on is one line."""
    parser = argparse.ArgumentParser(prog="python -m pruneflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stage = commands.add_parser("stage", help="run one stage of dvc.yaml")
    stage.add_argument("name", help="as in dvc.yaml, e.g. documents or round@r1")
    commands.add_parser("lock-sources", help="write data/sources.lock from the installed packages")
    arguments = parser.parse_args()
    try:
        from pruneflow.workspace import check_workspace

        check_workspace()
        if arguments.command == "stage":
            from pruneflow.stages import run_stage_by_name

            run_stage_by_name(arguments.name)
        else:
            from pruneflow.calibration.sources import lock_sources
            from pruneflow.stages import DOMAINS_FILE, LM_EVAL, SOURCES_LOCK

            lock_sources(DOMAINS_FILE, SOURCES_LOCK, LM_EVAL)
    except PruneflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
