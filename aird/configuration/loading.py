"""Check a configuration's values and return them typed, with errors that name the key and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aird.configuration.checks import mistakes
from aird.configuration.configuration import Configuration
from aird.configuration.messages import ConfigurationError, lines, name_mistakes, with_text_keys
from aird.plugin import PluginError, use_files


def load_configuration(values: Mapping[str, Any]) -> Configuration:
    """Check a configuration and return it typed; of files, only plug-ins are read (see `local_files.check_files`).

    Raises:
        ConfigurationError: with one line per mistake, each naming the key and what to write.
    """
    said = list(name_mistakes(values))
    files = values.get("plugins")
    try:
        if isinstance(files, list) and all(isinstance(file, str) for file in files):
            use_files(files)
        configuration = Configuration.model_validate(with_text_keys(values))
        # What follows from a wrong value would only hide it.
        said = said or mistakes(configuration)
    except ValidationError as error:
        said += lines(error, Configuration)
    except PluginError as error:
        said.append(f"plugins: {error}")
    if said:
        raise ConfigurationError("\n".join(said))
    return configuration
