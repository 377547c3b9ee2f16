"""An attack by a suffix that is optimised against the very checkpoint that is measured, by nanogcg.

nanogcg asks for an old Transformers, though it runs with today's. So its wheel is not installed. Its three files are
fetched like those of prompts, and checked by their SHA-256.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from aird.prompts.attack import Attack, AttackedPrompt, OptimisedText
from aird.prompts.chat import chat_text
from aird.prompts.sets import Record, select
from aird.prompts.sources import open_file
from aird.settings.attacks import OptimisedSettings
from aird.settings.base import PromptSelection, Seed, Text
from aird.settings.sources import FileSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WHEEL = "nanogcg==0.3.0"
FILES = {
    "nanogcg/__init__.py": "65416f27765fdab276cc4cca76d38cc0a87cd9cf69a6c9633b5302d0a7bab582",
    "nanogcg/gcg.py": "169071e6b829b594e741ad016dc3d7b5a3d21e994bac459bf33a0d15feb84471",
    "nanogcg/utils.py": "eb5f540377889afce8b42ca68fe509b0aed0b572ebb729bc71f1aac9698d7db8",
}
PLACE = "{optim_str}"  # nanogcg's own mark of where the suffix goes
BATCH = 64  # candidates that the model sees at once


class OptimisedSuffix(OptimisedSettings):
    """Put a suffix behind the prompt that GCG optimises against the measured checkpoint itself, its patch included.

    Zou et al. 2023 (arXiv 2307.15043), by nanogcg. The suffix is found on one training prompt, for which it has to make
    the checkpoint begin its answer with `target`, and is then put behind all prompts of the suite.
    """

    kind: Literal["optimised_suffix"] = "optimised_suffix"
    target: Text = Field("Sure, here is", description="How the answer is to begin.")
    steps: int = Field(100, ge=1, description="Steps of the search.")
    width: int = Field(64, ge=1, description="Candidate suffixes per step.")
    seed: Seed = Field(0, description="Draws the prompt and the candidates.")


def put_on(text: str, instruction: str) -> AttackedPrompt:
    """Return the instruction with the suffix behind it."""
    return AttackedPrompt(f"{instruction} {text}")


def optimise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: OptimisedSuffix,
    prompts: Sequence[Record],
    system_prompt: str | None,
) -> OptimisedText:
    """Return the suffix with the least loss (`Attack.optimise`).

    Raises:
        SourceError: nanogcg cannot be fetched.
        ValueError: the chat template writes the prompt otherwise or twice.
    """
    (record,) = select(prompts, PromptSelection(set=settings.prompts.set, count=1), settings.seed)
    conversation = _Conversation(tokenizer, put_on(PLACE, record["instruction"]).instruction, system_prompt)
    nanogcg = _nanogcg()
    config = nanogcg.GCGConfig(
        num_steps=settings.steps,
        search_width=settings.width,
        batch_size=min(BATCH, settings.width),
        # Kept keys and values are repeated for all candidates in a form that Transformers no longer has.
        use_prefix_cache=False,
        seed=settings.seed,
        verbosity="WARNING",
    )
    result = nanogcg.run(model, conversation, "", settings.target, config)
    logger.info("loss %.2f, then %.2f", result.losses[0], result.best_loss)
    return {"text": result.best_string, "losses": result.losses}


class _Conversation:
    """A tokenizer that knows one conversation: nanogcg would render and tokenise otherwise than this project."""

    bos_token = None  # the text has it already

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instruction: str, system_prompt: str | None) -> None:
        self._tokenizer = tokenizer
        self.text = chat_text(tokenizer, instruction, system_prompt=system_prompt)
        if self.text.count(PLACE) != 1:
            raise ValueError(
                "the chat template does not write an instruction as it is, once; leave optimised_suffix out"
            )

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        return self.text

    def __call__(self, texts: Any, **arguments: Any) -> Any:
        return self._tokenizer(texts, **{**arguments, "add_special_tokens": False})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@cache
def _nanogcg() -> Any:
    """Return the package, imported from its pinned files."""
    with tempfile.TemporaryDirectory(prefix="aird-nanogcg-") as folder:
        for name, sha256 in FILES.items():
            with open_file(FileSource(wheel=WHEEL, file=name, sha256=sha256)) as path:
                target = Path(folder) / name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        sys.path.insert(0, folder)
        try:
            return import_module("nanogcg")
        finally:
            sys.path.remove(folder)


ATTACK = Attack(settings=OptimisedSuffix, put_on=put_on, begins_answer=True, optimise=optimise)
