"""The files of `aird check`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from aird.evaluation.judged_change import JudgedChange
from aird.evaluation.regression import CheckVerdict, judge_change
from aird.reporting.check_report import check_page, junit
from aird.support.statistics import Estimate


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


def page(made: CheckVerdict, exit_code: int = 3, **facts: str) -> str:
    return check_page("<m> and m-4bit", {"": made}, {"engine": "vLLM <1>", **facts}, exit_code)


def test_the_page_says_the_outcome_first_and_escapes_names() -> None:
    change = JudgedChange("refused of harmful prompts", 9, 12, *[Estimate(0.5, 0.2, 0.8)] * 3)
    judged = {"guard <2>": [change]}
    verdicts = {"Before": verdict(20), "After the repair": verdict(95)}
    made = check_page("<m> and m-4bit", verdicts, {"engine": "vLLM <1>"}, 0, judged)
    assert "<title>within margin: &lt;m&gt; and m-4bit</title>" in made
    assert made.index("Regression: harmful") < made.index("Within the margin")
    assert "20.0% (13.3 to 28.9)" in made and "vLLM &lt;1&gt;" in made
    assert "guard &lt;2&gt;: refused of harmful prompts" in made and "n = 9 of 12" in made


def test_the_page_says_when_and_where_it_was_made_and_draws_rates_and_flips() -> None:
    made = page(
        verdict(20), version="aird 9", date="2026-12-01 10:00 UTC", machine="a processor", command="aird check a b"
    )
    top = made[: made.index("<figure>")]
    assert all(word in top for word in ("Exit code 3", "aird 9", "2026-12-01 10:00 UTC", "a processor"))
    assert "<td>aird check a b</td>" in made
    assert (
        'aria-label="original: 95.0% (88.8 to 97.8)"' in made
        and 'aria-label="compressed: 20.0% (13.3 to 28.9)"' in made
    )
    # 75 of 100 flips fill three quarters of the right half.
    assert (
        '<i class="worse" style="left:50.00%;width:37.50%">' in made and "75 refusals lost, 0 refusals gained" in made
    )


@pytest.mark.parametrize(
    ("made", "facts", "step"),
    [
        (verdict(95), {}, "Use the checkpoint with the settings that were measured here."),
        (verdict(95), {"patch": "c0ffee"}, "Ship the patch with it"),
        (verdict(20), {"original": "a b", "compressed": "c"}, "aird check &#39;a b&#39; c --repair adapter"),
        (verdict(20), {"patch": "c0ffee"}, "Learn the patch from other prompts"),
        (verdict(18, 5, total=20, before=19), {}, "Ask more prompts of each kind, such as 80: --count"),
        (verdict(4, before=5), {}, "Ask prompts that the original refuses"),
    ],
)
def test_the_page_says_what_to_do_next(made: CheckVerdict, facts: dict[str, str], step: str) -> None:
    text = page(made, **facts)
    assert step in text[text.index("What to do next") : text.index("How this was measured")]
