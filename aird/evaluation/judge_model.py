"""The model of a classifier, fetched once: apart from how it is asked, so that a change there fetches nothing again."""

from __future__ import annotations

from pathlib import Path

from aird.models.importing import check_weights, copy_weights
from aird.models.loading import read_chat, write_chat
from aird.models.tokenizer_file import let_its_file_be_read, read_tokenizer
from aird.prompts.chat import check_chat, with_chat
from aird.settings.models import Chat


def import_judge(source: Path, target: Path, chat: Chat | None = None, templated: bool = False) -> None:
    """Copy a model folder in Hugging Face format as a checkpoint that is only served: no structure is asked of it.

    Args:
        source: the folder.
        target: an existing, empty folder.
        chat: chat settings, which are stored with it.
        templated: it is asked by a text of the suite's, and not by its chat template.

    Raises:
        ValueError: `source` is no such folder, or a weight is missing, truncated, NaN or infinite; it is asked by its
            chat template and has none, or one that the chat settings do not fit.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: a judge needs a model in Hugging Face format")
    copy_weights(source, target, with_code=False)
    check_weights(target, source)
    let_its_file_be_read(target, trust_remote_code=False)
    if templated:
        return
    if chat is not None:
        write_chat(chat, target)
    tokenizer = with_chat(read_tokenizer(target, trust_remote_code=False), read_chat(target))
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "this judge has no chat template; write `template` with {instruction} and {completion}, if it is a "
            "classifier, or take a chat model"
        )
    check_chat(tokenizer)
