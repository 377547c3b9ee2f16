"""The checked configuration, and what all rules share.

Nothing heavy is imported here: the workflow is parsed on every start and in
every cluster job.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The project's folder; the library is imported from it, whatever is installed elsewhere.
PROJECT = Path(workflow.basedir)
if PROJECT.name == "workflow":
    PROJECT = PROJECT.parent
sys.path.insert(0, str(PROJECT))

from aird.code_dependencies import code_files
from aird.configuration import (
    ORIGINAL,
    PLAIN,
    ConfigurationError,
    load_configuration,
)
from aird.files import canonical_json

RESULTS = "results"

try:
    CONFIGURATION = load_configuration(config)
except ConfigurationError as error:
    raise WorkflowError(
        f"The configuration has mistakes (keys: config/README.md):\n{error}"
    )

SEED = CONFIGURATION.seed

# Jobs that compute with tensors take up to that many cores; Snakemake lowers it to what there is.
THREADS = 16
TUNED = [
    name
    for name, model in CONFIGURATION.models.items()
    if model.refusal_tuning is not None
]
UNTUNED = [name for name in CONFIGURATION.models if name not in TUNED]


def one_of(names):
    """Return a regular expression that matches exactly these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    prompt_set=one_of(CONFIGURATION.prompt_sets),
    model=one_of(CONFIGURATION.models),
    compression=one_of([ORIGINAL, *CONFIGURATION.compressions]),
    patch=one_of([PLAIN, *CONFIGURATION.patches]),
    suite=one_of(CONFIGURATION.suites),


# Jobs run with the Python that runs Snakemake and find the library in the project's folder,
# unless each has a conda environment of its own.
if "conda" in str(workflow.deployment_settings.deployment_method).lower():
    shell.prefix(f"set -euo pipefail; export PYTHONPATH='{PROJECT}'; ")
else:
    shell.prefix(
        f"set -euo pipefail; export PYTHONPATH='{PROJECT}' PATH='{Path(sys.executable).parent}':\"$PATH\"; "
    )


def code(script):
    """Return the script and every library file that it runs: an edit of one reruns the node."""
    files = code_files(PROJECT / "workflow" / "scripts" / f"{script}.py", PROJECT)
    return [os.path.relpath(path) for path in files]


def settings_json(settings, only=None):
    """Return typed settings, or only some of them, as one canonical JSON string.

    This is the form of every rule's parameters: Snakemake compares nothing else reliably.
    """
    values = settings.model_dump(exclude_none=True)
    return canonical_json(
        {key: value for key, value in values.items() if only is None or key in only}
    )


def prompts(name):
    """Return the file of a prompt set."""
    return f"{RESULTS}/prompts/{name}.jsonl"


# The checkpoint folder and its manifest. Snakemake does not see edits inside a folder,
# so what depends on a checkpoint depends on its manifest and checks the hashes in it.
CHECKPOINT = f"{RESULTS}/models/{{model}}/{{compression}}/checkpoint"
MANIFEST = f"{RESULTS}/models/{{model}}/{{compression}}/manifest.json"
ORIGINAL_CHECKPOINT = f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"
ORIGINAL_MANIFEST = f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json"
