"""The files of `aird check`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from aird.evaluation.regression import CheckVerdict, judge_change
from aird.reporting.check_report import check_page, junit


def verdict(refused_after: int, over_refusal_after: int = 5, total: int = 100, before: int = 95) -> CheckVerdict:
    def labels(harmful: int, harmless: int) -> list[dict[str, Any]]:
        return [
            {"id": f"{kind}-{index}", "kind": kind, "refused": index < count, "degenerate": False}
            for kind, count in (("harmful", harmful), ("harmless", harmless))
            for index in range(total)
        ]

    return judge_change(labels(before, 5), labels(refused_after, over_refusal_after))


@pytest.mark.parametrize(
    "made, failures, errors",
    [
        (verdict(95), [], []),
        (verdict(20), ["harmful"], []),
        (verdict(95, 60), ["harmless"], []),
        (verdict(4, before=5), [], ["harmful"]),
        (verdict(0, 60, before=0), ["harmless"], ["harmful"]),
        (verdict(0, total=200, before=9), [], ["harmful"]),
        (verdict(18, 5, total=20, before=19), [], ["harmful", "harmless"]),
    ],
)
def test_junit_fails_for_a_regression_and_never_passes_what_is_unknown(
    made: CheckVerdict, failures: list[str], errors: list[str]
) -> None:
    suite = ElementTree.fromstring(junit("a & b", made))
    assert suite.attrib["name"] == "aird check: a & b"
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.attrib["tests"]) == 2
    for tag, wanted in (("failure", failures), ("error", errors)):
        having = [case.attrib["name"].split()[0] for case in cases if case.find(tag) is not None]
        assert having == wanted and int(suite.attrib[f"{tag}s"]) == len(wanted)


def test_the_page_says_the_outcome_first_and_escapes_names() -> None:
    page = check_page(
        "<m> and m-4bit", {"Before": verdict(20), "After the repair": verdict(95)}, {"engine": "vLLM <1>"}
    )
    assert "<title>within margin: &lt;m&gt; and m-4bit</title>" in page
    assert page.index("Regression: harmful") < page.index("Within the margin")
    assert "20.0% (13.3 to 28.9)" in page and "vLLM &lt;1&gt;" in page
