"""Suffixes that are optimised against the very checkpoint that is measured, by nanogcg.

    texts = optimise_suffixes(model, tokenizer, {"gcg": OptimisedSuffix(...)}, {"gcg": records}, seed=42)

nanogcg asks for an old Transformers, though it runs with today's. So its wheel is not installed. Its three files are
fetched like those of prompts, and checked by their SHA-256.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from aird.prompts.chat import chat_text
from aird.prompts.sets import Record, select
from aird.prompts.sources import open_file
from aird.settings.attacks import OptimisedSuffix
from aird.settings.base import PromptSelection
from aird.settings.sources import FileSource

logger = logging.getLogger(__name__)

WHEEL = "nanogcg==0.3.0"
FILES = {
    "nanogcg/__init__.py": "65416f27765fdab276cc4cca76d38cc0a87cd9cf69a6c9633b5302d0a7bab582",
    "nanogcg/gcg.py": "169071e6b829b594e741ad016dc3d7b5a3d21e994bac459bf33a0d15feb84471",
    "nanogcg/utils.py": "eb5f540377889afce8b42ca68fe509b0aed0b572ebb729bc71f1aac9698d7db8",
}
PLACE = "{optim_str}"  # nanogcg's own mark of where the suffix goes
BATCH = 64  # candidates that the model sees at once


def optimise_suffixes(
    model: Any,
    tokenizer: Any,
    attacks: Mapping[str, OptimisedSuffix],
    records: Mapping[str, Sequence[Record]],
    seed: int,
    system_prompt: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return a suffix for each attack, by its name: {"text", "losses"}.

    Args:
        model: a chat model without gradients of its own, its patch included.
        tokenizer: the checkpoint's tokenizer.
        attacks: their settings.
        records: the prompt set of each attack.
        seed: the workflow's, by which prompts are drawn from a set.
        system_prompt: put in front of the conversation.

    Returns:
        `losses` holds the mean cross-entropy of the target's tokens (nats) after each step; `text` has the least.

    Raises:
        SourceError: nanogcg cannot be fetched.
        ValueError: the prompt set has too few prompts, or the chat template writes the prompt otherwise or twice.
    """
    made = {}
    with _nanogcg() as nanogcg:
        for name, attack in attacks.items():
            chosen = select(records[name], attack.prompts, seed)
            (record,) = select(chosen, PromptSelection(set=attack.prompts.set, count=1), attack.seed)
            conversation = _Conversation(tokenizer, f"{record['instruction']} {PLACE}", system_prompt)
            config = nanogcg.GCGConfig(
                num_steps=attack.steps,
                search_width=attack.width,
                batch_size=min(BATCH, attack.width),
                # Kept keys and values are repeated for all candidates in a form that Transformers no longer has.
                use_prefix_cache=False,
                seed=attack.seed,
                verbosity="WARNING",
            )
            result = nanogcg.run(model, conversation, "", attack.target, config)
            logger.info("%s: loss %.2f, then %.2f", name, result.losses[0], result.best_loss)
            made[name] = {"text": result.best_string, "losses": result.losses}
    return made


class _Conversation:
    """A tokenizer that knows one conversation: nanogcg would render and tokenise otherwise than this project."""

    bos_token = None  # the text has it already

    def __init__(self, tokenizer: Any, instruction: str, system_prompt: str | None) -> None:
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


@contextlib.contextmanager
def _nanogcg() -> Iterator[Any]:
    """Yield the package, read from its pinned files."""
    with tempfile.TemporaryDirectory(prefix="aird-nanogcg-") as folder:
        for name, sha256 in FILES.items():
            with open_file(FileSource(wheel=WHEEL, file=name, sha256=sha256)) as path:
                target = Path(folder) / name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        sys.path.insert(0, folder)
        try:
            yield import_module("nanogcg")
        finally:
            sys.path.remove(folder)
