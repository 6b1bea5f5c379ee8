import pytest

from pruneflow.data.licences import licence_problem


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "CC-BY-SA-3.0",
        "ODC-By-1.0",
        "MIT AND (Apache-2.0 OR GPL-3.0-or-later WITH Classpath-exception-2.0)",
        "LicenseRef-BBC",
        "MIT OR LicenseRef-my.own-1",
    ],
)
def test_spdx_expressions_and_own_references_are_licences(licence):
    assert licence_problem(licence) is None


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("free", "licence free is unknown: use an SPDX identifier"),
        ("MIT OR Free-1.0", "licence Free-1.0 is unknown"),
        ("public domain", "LicenseRef-NAME"),
        ("MIT or", "not an SPDX expression"),
        ("(MIT", "not an SPDX expression"),
        ("LicenseRef-", "unknown"),
        ("LicenseRef-a b", "LicenseRef-NAME"),
        ("Classpath-exception-2.0", "not an SPDX expression"),
    ],
)
def test_other_licences_are_refused_with_a_fix(licence, words):
    problem = licence_problem(licence)
    assert problem is not None and words in problem and "LicenseRef-NAME" in problem
    assert "\n" not in problem
