"""The verdict of `aird check` as files: a page for people, JUnit XML for continuous integration.

Neither holds the text of a prompt or of an answer.
"""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence

from jinja2 import Environment

from aird.evaluation.judged_change import JudgedChange
from aird.evaluation.regression import (
    FLIPS,
    NOT_MEASURED,
    REGRESSION,
    UNRESOLVED,
    WITHIN_MARGIN,
    Change,
    CheckVerdict,
    p_value,
)
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
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  overflow-wrap: anywhere; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { font-size: 1.5rem; }
code { font: .9em ui-monospace, monospace; }
.outcome { color: white; background: {{ colour }}; padding: .15em .6em; border-radius: .3em; }
.made { color: #555; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top; }
th { width: 30%; }
figure { margin: 1rem 0; }
figcaption { margin-top: .8rem; font-weight: 600; }
.row { display: grid; grid-template-columns: 6rem 1fr 16rem; gap: .6rem; align-items: center; }
.value { text-align: right; font-variant-numeric: tabular-nums; }
.track { position: relative; height: 1.1rem; background: #eee; }
.track i { position: absolute; top: 0; bottom: 0; }
.interval { background: #9db7d5; }
.compressed .interval, .flips .worse { background: #e3a08f; }
.flips .better { background: #8fc5a4; }
.point { width: 3px; margin-left: -1px; background: #1a1a1a; }
@media (max-width: 34rem) {
  body { margin: 1rem auto; }
  .row { grid-template-columns: 1fr auto; gap: 0 .6rem; margin-bottom: .5rem; }
  .track { grid-row: 2; grid-column: 1 / 3; }
  th, td { display: block; width: auto; }
  th { border: 0; padding-bottom: 0; }
}
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  figure, tr, li { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
{% macro row(name, value, bars, point) %}
<div class="row {{ name }}"><span>{{ name }}</span>
<span class="track" role="img" aria-label="{{ name }}: {{ value }}">
{% for kind, low, high in bars %}
<i class="{{ kind }}" style="left:{{ percent(low) }};width:{{ percent(high - low) }}"></i>
{% endfor %}
<i class="point" style="left:{{ percent(point) }}"></i></span>
<span class="value">{{ value }}</span></div>
{% endmacro %}
<h1><span class="outcome">{{ outcome }}</span> {{ title }}</h1>
<p class="made">Exit code {{ exit_code }}{% if made %} &middot; {{ made|join(" &middot; "|safe) }}{% endif %}</p>
{% for section in sections %}
{% if section.heading %}<h2>{{ section.heading }}</h2>{% endif %}
<p>{{ section.verdict.text() }}</p>
<figure>
{% for change in (section.verdict.harmful, section.verdict.harmless) %}
<figcaption>{{ change.refused.n }} {{ change.kind }} prompts: how many are refused</figcaption>
{{ row("original", interval(change.original, "%"), [("interval", change.original.low, change.original.high)],
change.original.value) }}
{{ row("compressed", interval(change.compressed, "%"), [("interval", change.compressed.low, change.compressed.high)],
change.compressed.value) }}
{% set flips = change.flips %}
{{ row("flips", words(change), [("better", half(-flips.lost / flips.n), 0.5),
("worse", 0.5, half(flips.gained / flips.n))], 0.5) }}
{{ row("loss", interval(change.loss) ~ " points, p " ~ p_value(change.refused.p_value),
[("interval", half(change.loss.low), half(change.loss.high))], half(change.loss.value)) }}
{% endfor %}
</figure>
{% endfor %}
<p class="made">Bars are 95% intervals, marks the values. Flips and the loss, both paired, go from 100 points better on
the left to 100 points worse on the right.</p>
{% if judged %}
<h2>What a model says of the replies</h2>
<table>
{% for name, changes in judged.items() %}{% for change in changes %}
<tr><th>{{ name }}: {{ change.what }}</th><td>{{ change.text() }}</td></tr>
{% endfor %}{% endfor %}
</table>
{% endif %}
<h2>What to do next</h2>
<ul>
{% for step in steps %}<li>{{ step }}</li>
{% endfor %}
</ul>
<h2>How this was measured</h2>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
</body>
</html>
"""
MADE = ("version", "date", "machine")  # facts that stand at the top


def check_page(
    title: str,
    verdicts: Mapping[str, CheckVerdict],
    facts: Mapping[str, str],
    exit_code: int,
    judged: Mapping[str, Sequence[JudgedChange]] | None = None,
) -> str:
    """Return the page of a check.

    Args:
        title: names the two checkpoints.
        verdicts: heading to verdict, in order; the last one is the outcome. The heading of a single one may be "".
        facts: what was measured and how, name to text.
        exit_code: of the command.
        judged: what models say of the replies, by the judge.
    """
    verdict = list(verdicts.values())[-1]
    template = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return template.render(
        title=title,
        outcome=verdict.outcome,
        colour=COLOURS[verdict.outcome],
        exit_code=exit_code,
        made=[facts[name] for name in MADE if name in facts],
        sections=[{"heading": heading, "verdict": verdict} for heading, verdict in verdicts.items()],
        judged=judged,
        steps=_next_steps(verdict, facts, len(verdicts) > 1),
        facts={name: text for name, text in facts.items() if name not in MADE},
        interval=_interval,
        percent=lambda share: f"{100 * share:.2f}%",
        half=lambda change: (1 + change) / 2,  # of a track from -1 to 1
        p_value=p_value,
        words=_flips,
    )


def _next_steps(verdict: CheckVerdict, facts: Mapping[str, str], repaired: bool) -> list[str]:
    """Return what to do next, a sentence each."""
    patched = repaired or "patch" in facts
    if verdict.outcome == WITHIN_MARGIN:
        with_patch = " Ship the patch with it: it is no part of the checkpoint." if patched else ""
        return [
            f"Use the checkpoint with the settings that were measured here.{with_patch}",
            "Check again after any change of weights, chat template, engine or its version.",
            "Prompts of your own use count more than published ones: --harmful FILE --harmless FILE.",
        ]
    if verdict.outcome == REGRESSION:
        mend = "Learn the patch from other prompts, or compress less."
        if not patched:
            names = shlex.join(facts.get(side, side.upper()) for side in ("original", "compressed"))
            mend = f"Repair it, and check the repaired model: aird check {names} --repair adapter. Or compress less."
        return [
            "Do not use this checkpoint where the original's refusal is relied on.",
            mend,
            "Keep the replies to look at with --output FOLDER, and let a model judge them with --judge.",
        ]
    if verdict.outcome == UNRESOLVED:
        return [
            f"Ask more prompts of each kind, such as {4 * verdict.harmful.refused.n}: --count, or files of your own.",
            "Or accept a larger loss, if that is right for your use: --margin.",
        ]
    return [
        "Ask prompts that the original refuses: --prompts with another name, or --harmful FILE.",
        "If it thinks, give it longer answers: --tokens.",
    ]


def _flips(change: Change) -> str:
    worse, better = FLIPS[change.kind]
    return f"{change.flips.gained} {worse}, {change.flips.lost} {better}"


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
