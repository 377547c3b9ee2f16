"""The verdict of `aird check` as files: a page for people, JUnit XML for continuous integration.

Neither holds the text of a prompt or of an answer.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

from jinja2 import Environment

from aird.evaluation.regression import NOT_MEASURED, REGRESSION, UNRESOLVED, WITHIN_MARGIN, CheckVerdict
from aird.support.statistics import Estimate

QUESTIONS = {"harmful": "harmful prompts are refused as before", "harmless": "harmless prompts are answered as before"}
COLOURS = {WITHIN_MARGIN: "#1b7f3b", REGRESSION: "#b3261e", UNRESOLVED: "#8a6100", NOT_MEASURED: "#8a6100"}

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ outcome }}: {{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; }
.outcome { color: white; background: {{ colour }}; padding: .15em .6em; border-radius: .3em; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1><span class="outcome">{{ outcome }}</span> {{ title }}</h1>
{% for section in sections %}
{% if section.heading %}<h2>{{ section.heading }}</h2>{% endif %}
<p>{{ section.verdict.text() }}</p>
<table>
<tr><th>prompts</th><th>n</th><th>refused by the original</th><th>refused by the checkpoint</th>
<th>loss, points (95%)</th><th>p (McNemar)</th></tr>
{% for change in (section.verdict.harmful, section.verdict.harmless) %}
<tr><td>{{ change.kind }}</td><td class="number">{{ change.refused.n }}</td>
<td class="number">{{ interval(change.original, "%") }}</td>
<td class="number">{{ interval(change.compressed, "%") }}</td>
<td class="number">{{ interval(change.loss) }}</td>
<td class="number">{{ "%.3g"|format(change.refused.p_value) }}</td></tr>
{% endfor %}
</table>
{% endfor %}
<h2>How this was measured</h2>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
</body>
</html>
"""


def check_page(title: str, verdicts: Mapping[str, CheckVerdict], facts: Mapping[str, str]) -> str:
    """Return the page of a check.

    Args:
        title: names the two checkpoints.
        verdicts: heading to verdict, in order; the last one is the outcome. The heading of a single one may be "".
        facts: what was measured and how, name to text.
    """
    outcome = list(verdicts.values())[-1].outcome
    template = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return template.render(
        title=title,
        outcome=outcome,
        colour=COLOURS[outcome],
        sections=[{"heading": heading, "verdict": verdict} for heading, verdict in verdicts.items()],
        facts=facts,
        interval=_interval,
    )


def junit(title: str, verdict: CheckVerdict) -> str:
    """Return the verdict as JUnit XML: one test case for each kind of prompts.

    A regression is a failure. What could not be measured or resolved is an error, so that no pipeline takes it for
    a pass.
    """
    changes = {"harmful": verdict.harmful, "harmless": verdict.harmless}
    outcomes = {kind: change.outcome(verdict.margin) for kind, change in changes.items()}
    failed = sum(outcome == REGRESSION for outcome in outcomes.values())
    unknown = sum(outcome in (NOT_MEASURED, UNRESOLVED) for outcome in outcomes.values())
    suite = ElementTree.Element(
        "testsuite", name=f"aird check: {title}", tests="2", failures=str(failed), errors=str(unknown)
    )
    for kind, outcome in outcomes.items():
        case = ElementTree.SubElement(suite, "testcase", classname="aird.check", name=QUESTIONS[kind])
        if outcome != WITHIN_MARGIN:
            tag = "failure" if outcome == REGRESSION else "error"
            ElementTree.SubElement(case, tag, type=outcome, message=verdict.text())
    ElementTree.SubElement(suite, "system-out").text = verdict.text()
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _interval(estimate: Estimate, unit: str = "") -> str:
    value, low, high = (100 * each for each in estimate)
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"
