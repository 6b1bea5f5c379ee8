"""The Jinja templates beside this file."""

from pathlib import Path
from typing import Any

from pruneflow.templating import templates


def render(name: str, **values: Any) -> str:
    """Fill a template; HTML is escaped in ``*.html.jinja``, and a missing value is an error."""
    from pruneflow.reporting import numbers

    environment = templates(Path(__file__).parent, autoescape=name.endswith(".html.jinja"))
    for function in (
        numbers.count,
        numbers.decimal,
        numbers.percent,
        numbers.times,
        numbers.megabytes,
        numbers.milliseconds,
        numbers.target,
    ):
        environment.filters[function.__name__] = function
    return environment.get_template(name).render(**values)
