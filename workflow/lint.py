"""Run Snakemake's lint, and fail for all that it says but one thing.

It wants the functions of rules in one common module. Here each stage's file holds the functions that only its own
rules use, so that a reader opens one file per stage.
"""

import subprocess
import sys

ALLOWED = "* Mixed rules and functions in same snakefile.:"


def main() -> int:
    """Print what is to be mended; return the exit code."""
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lints = [line.strip() for line in run.stdout.splitlines() if line.startswith("    * ")]
    clean = run.returncode == 0 or (lints and set(lints) == {ALLOWED})
    if not clean:
        print(run.stdout)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
