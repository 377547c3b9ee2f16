"""What every kind of attack says of itself, and the texts of attacks. The kinds stand in aird/evaluation/attacks/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from aird.plugin import ATTACKS
from aird.prompts.sets import Record
from aird.prompts.sources import open_file
from aird.settings.attacks import AttackSettings, text_sources
from aird.settings.prompt_files import ENCODING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AttackedPrompt(NamedTuple):
    """What is asked under an attack: the user's text, and how the answer is made to begin."""

    instruction: str
    prefill: str = ""


class OptimisedText(TypedDict):
    """A text that was optimised, and its loss after each step (mean cross-entropy of the aim's tokens, nats)."""

    text: str
    losses: list[float]


Optimise = Callable[
    ["PreTrainedModel", "PreTrainedTokenizerBase", Any, Sequence[Record], str | None],
    OptimisedText,
]


def _read(settings: Any, content: str | None) -> str:
    return str(settings.text) if content is None else content.strip()


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        settings: the model of its settings; its field `kind` is a literal with the kind's name. One with a text has
            the key `text`, or is a `TextOrFile`; one that is optimised is of `OptimisedSettings`.
        put_on: returns what is asked, from the attack's text and an instruction.
        read: returns the text from the settings and the content of its file, None where it has none.
        turns: 2 where it is said in a second turn, after a first reply that refused.
        begins_answer: whether it decides how the answer begins, so that the model cannot think first.
        optimise: makes the text for one checkpoint, from a model without gradients of its own, its tokenizer, the
            settings, the prompts to optimise on, and the system prompt in front; None where all checkpoints get the
            same text.
    """

    settings: type[AttackSettings]
    put_on: Callable[[str, str], AttackedPrompt]
    read: Callable[[Any, str | None], str] = _read
    turns: int = 1
    begins_answer: bool = False
    optimise: Optimise | None = None


def attack_of(settings: AttackSettings) -> Attack:
    """Return the kind of attack that settings name."""
    chosen: Attack = ATTACKS.of(settings)
    return chosen


def read_attack_texts(attacks: Mapping[str, AttackSettings]) -> dict[str, str]:
    """Return the text of each attack by its name, read from its file where it has one.

    Args:
        attacks: names to their settings; none is optimised.

    Raises:
        SourceError: a source cannot be fetched, or holds other bytes than the pinned ones.
        ValueError: a file holds no such text, or a template does not take the prompt alone.
    """
    sources, texts = text_sources(attacks), {}
    for name, settings in attacks.items():
        content = None
        if name in sources:
            with open_file(sources[name]) as path:
                content = path.read_text(encoding=ENCODING)
        try:
            texts[name] = attack_of(settings).read(settings, content)
        except ValueError as error:
            raise ValueError(f"attack {name}: {error}") from error
    return texts
