"""What a configuration may say about engines: the base of the settings that each engine's own file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from pydantic import Field, model_validator

from aird.settings.base import Settings, Text

Cell = tuple[str, str, str]  # names of a model, a compression and a patch


class EngineSettings(Settings):
    """How an engine is started."""

    def asked(self) -> dict[str, object]:
        """Return what answers can depend on."""
        return self.model_dump()

    def of(self, cell: Cell) -> Self:
        """Return what one checkpoint's job is told; `patch` is PLAIN where a patch changes no weights."""
        return self

    def mistakes(self, cells: Sequence[Cell]) -> Iterator[str]:
        """Yield "key: what is wrong", in the words of configuration errors.

        Args:
            cells: all that the engine serves, as `of` is given them.
        """
        yield from ()

    @property
    def memory_gib(self) -> float:
        """Main memory that a server takes beside the weights and 8 GiB, GiB, without a GPU."""
        return 0.0


class EnvironmentSettings(EngineSettings):
    """How an engine is started that has a Python environment of its own."""

    executable: Text | None = Field(
        None, description="Python of an environment with the engine; default: the workflow builds one."
    )
    lock: Text | None = Field(None, description="Lock file of the environment to build; default: the project's own.")

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        if self.executable is not None and self.lock is not None:
            raise ValueError("executable and lock exclude each other; keep one of them")
        return self

    def asked(self) -> dict[str, object]:
        """Return all but where the engine is."""
        return self.model_dump(exclude={"executable", "lock"})
