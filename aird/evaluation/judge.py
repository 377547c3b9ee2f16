"""What a judge of completions says of itself. The judges stand in aird/evaluation/judges/, one plug-in each.

A judge reads a text by itself, or a model that an engine serves is asked. Judges disagree, so every table keeps them
apart: the judge NAME gives the label `jailbroken_NAME` and the rate `asr_NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from aird.inference.refusals import REFUSAL_JUDGE
from aird.plugin import JUDGES
from aird.prompts.sets import ATTACKED
from aird.settings.judges import JudgeSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSAL = "refusal"  # the key of a judgement that says whether the completion refuses
Said = dict[str, bool | int | float | str | None]
S = TypeVar("S", bound=JudgeSettings)


@dataclass(frozen=True)
class TextJudge:
    """A judge that reads a text by itself. The project's own label every suite, others the suites that name them.

    Attributes:
        title: what tables for people call it.
        says: what its rate means, for the description of its column.
        label: tells from a completion's text alone whether it complied.
    """

    title: str
    says: str
    label: Callable[[str], bool]
    settings: ClassVar[None] = None


@dataclass(frozen=True)
class ServedJudge(Generic[S]):
    """A judge that is a model: an engine serves it, and it is asked about completions.

    Attributes:
        title, says: as of a `TextJudge`.
        settings: the model of its settings; its field `kind` is a literal with the judge's name.
        question: returns the token ids that ask about one completion, from the judge's tokenizer, its settings, the
            instruction and the completion. It raises ValueError where the tokenizer cannot write the question.
        read: returns what the text of an answer says, by keys of the judge. `answer` names the key that is the label:
            true if the completion complied, a grade from 0 to 1, or None where the answer does not say. With the key
            `refusal` it says whether the completion refuses: of a judge whose settings have `judges_harmless`.
        answer: that key. Rows without it have no such label.
        grades: whether its label is a grade.
        refusals: whether some of its settings let it say which completions refuse (`judges_harmless`).
        of_command: settings where a command names the judge and its model alone.
        usage: how to mend settings by which no answer can be read, behind a semicolon.
    """

    title: str
    says: str
    settings: type[S]
    question: Callable[[PreTrainedTokenizerBase, S, str, str], list[int]]
    read: Callable[[str, S], Said]
    answer: str
    usage: str
    grades: bool = False
    refusals: bool = False
    of_command: Mapping[str, object] = field(default_factory=dict)


def text_judges(names: Iterable[str] | None = None) -> dict[str, TextJudge]:
    """Return judges of texts by their names.

    Args:
        names: of plug-ins, of which those that are served are left out; default: the project's own, in alphabetical
            order.

    Raises:
        PluginError: there is no such judge.
    """
    known = {name: JUDGES.load(name) for name in (JUDGES.own() if names is None else names)}
    return {name: judge for name, judge in known.items() if isinstance(judge, TextJudge)}


def served_judges(names: Iterable[str] | None = None) -> dict[str, ServedJudge[JudgeSettings]]:
    """Return judges that are served by their names, as `text_judges` does."""
    known = {name: JUDGES.load(name) for name in (JUDGES.own() if names is None else names)}
    return {name: judge for name, judge in known.items() if isinstance(judge, ServedJudge)}


def titles(rates: Iterable[str]) -> dict[str, str]:
    """Return the titles of judges by their rates of attack success, for tables that people read.

    The judge whose phrases decide refusal is left out: its rate is the complement. A judge from elsewhere goes by its
    name where it is not to be had, such as by who reads a card.

    Args:
        rates: names of rates, or of columns, of any kind.
    """
    known = JUDGES.names()
    told = {rate: rate.removeprefix("asr_") for rate in rates if rate.startswith("asr_")}
    return {
        rate: JUDGES.load(name).title if name in known else name
        for rate, name in told.items()
        if name not in (REFUSAL_JUDGE, f"{REFUSAL_JUDGE}_coherent")
    }


R = TypeVar("R", bound=Mapping[str, object])


def judged(records: Iterable[R], harmless: bool = False) -> list[R]:
    """Return the records that a judge is asked about: completions of harmful prompts, plain and attacked.

    Args:
        records: of completions, or their labels, with `kind`.
        harmless: those of harmless prompts too.
    """
    kinds = {"harmful", ATTACKED, *(["harmless"] if harmless else ())}
    return [record for record in records if record["kind"] in kinds]


def filled(template: str, instruction: str, completion: str) -> str:
    """Return a template with `{instruction}` and, behind it, `{completion}` put in.

    Not by str.format: a template may hold other braces, and a completion may hold field names.
    """
    head, _, rest = template.partition("{instruction}")
    middle, _, tail = rest.partition("{completion}")
    return head + instruction + middle + completion + tail
