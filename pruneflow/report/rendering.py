"""The Jinja templates in this folder."""

from pathlib import Path
from typing import Any

from pruneflow.report import number_format
from pruneflow.templating import templates


def render(name: str, **values: Any) -> str:
    """Fill a template; HTML is escaped in ``*.html.jinja``, and a missing value is an error."""
    environment = templates(Path(__file__).parent, autoescape=name.endswith(".html.jinja"))
    for function in (
        number_format.count,
        number_format.decimal,
        number_format.percent,
        number_format.times,
        number_format.megabytes,
        number_format.milliseconds,
        number_format.target,
    ):
        environment.filters[function.__name__] = function
    return environment.get_template(name).render(**values)
