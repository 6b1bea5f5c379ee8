"""Validation of licences: SPDX expressions, and LicenseRef-NAME for all others."""

import re
from functools import lru_cache

from boolean.boolean import ParseError
from license_expression import ExpressionError, get_spdx_licensing

_REFERENCE = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")


@lru_cache(maxsize=1024)
def licence_problem(licence: str) -> str | None:
    """Return what is wrong with a licence and how to fix it, or None if it is valid.

    Args:
        licence: should be an SPDX licence expression, e.g. `MIT OR Apache-2.0`.
    """
    licensing = get_spdx_licensing()
    fix = "use an SPDX identifier (spdx.org/licenses), or LicenseRef-NAME for any other"
    try:
        expression = licensing.parse(licence, strict=True)
    except (ExpressionError, ParseError) as error:
        detail = " ".join(str(error).split())
        return f"licence {licence!r} is not an SPDX expression ({detail}): {fix}"
    if expression is None:
        return f"licence is empty: {fix}"
    for name in licensing.unknown_license_keys(expression):
        if not _REFERENCE.fullmatch(name):
            return f"licence {name} is unknown: {fix}"
    return None
