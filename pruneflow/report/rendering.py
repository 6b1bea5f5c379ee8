"""The Jinja templates in this folder."""

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from pruneflow.report import number_format
from pruneflow.templating import templates


def render(name: str, /, **values: Any) -> str:
    """Fill a template; HTML is escaped in ``*.html.jinja``, and a missing value is an error."""
    environment = templates(Path(__file__).parent, autoescape=name.endswith(".html.jinja"))
    for function in (
        number_format.count,
        number_format.decimal,
        number_format.listed,
        number_format.megabytes,
        number_format.percent,
        number_format.points,
        number_format.ratio,
        number_format.share,
        number_format.signed,
        number_format.span_of,
        number_format.target,
        number_format.times,
        inline_code,
    ):
        environment.filters[function.__name__] = function
    return environment.get_template(name).render(**values)


def inline_code(text: str) -> Markup:
    """Return text as HTML in which what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
