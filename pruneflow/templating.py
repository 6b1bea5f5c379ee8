"""How every Jinja template of the engine is read."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(folder: Path, autoescape: bool = False) -> Environment:
    """Return the templates of a folder; a value that is missing is an error.

    Args:
        folder: where they are.
        autoescape: for HTML.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
