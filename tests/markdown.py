"""What the project's Markdown says: its links, its headings, and the commands it shows."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "data/README.md", "data/text/README.md", "mlflow/*.md")
    for path in ROOT.glob(pattern)
)


def tokens(path: Path) -> Iterator[Token]:
    """Yield the tokens of a page, those within lines too."""
    text = path.read_text(encoding="utf-8")
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or []


def links(path: Path) -> list[str]:
    """Targets of links and pictures that are in this project."""
    found = [str(token.attrGet("href") or token.attrGet("src") or "") for token in tokens(path)]
    return [target for target in found if target and "://" not in target]


def anchors(path: Path) -> set[str]:
    """The headings of a page as a forge spells them in links."""
    page = list(tokens(path))
    titles = [inline.content for token, inline in pairwise(page) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(path: Path) -> list[tuple[str, str]]:
    """Blocks of code with the language that each names; indented blocks name none."""
    kinds = ("fence", "code_block")
    return [(token.info, token.content) for token in tokens(path) if token.type in kinds]


def commands(path: Path) -> list[str]:
    """The shell commands of a page in their order, without comments and `&&`."""
    lines = [
        line
        for language, content in blocks(path)
        if language in ("sh", "bash")
        for line in content.replace("\\\n", " ").splitlines()
    ]
    return [
        " ".join(command.split())
        for line in lines
        for command in _without_comment(line).split("&&")
        if command.strip()
    ]


def quoted(path: Path) -> list[str]:
    """What a page sets as code within its lines."""
    return [token.content for token in tokens(path) if token.type == "code_inline"]


def _without_comment(line: str) -> str:
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return " ".join(lexer)
