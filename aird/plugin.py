"""Plug-ins: the axes along which the method varies. One plug-in is one file, found by its name and loaded when used.

A folder of plug-ins holds plug-ins only. Each file ends in one constant of its axis, such as `METHOD = Method(...)`,
and is called like its plug-in. Plug-ins from elsewhere are found the same way:

    entry points    `[project.entry-points."aird.judges"]` of an installed package: `my_judge = "my_package.my_judge"`
    files           `plugins: [my_judge.py]` in a configuration, or the variable AIRD_PLUGINS

The Snakefile loads plug-ins for their settings, so they import torch, Transformers and pandas inside functions only.
Their words for readers stand in arguments called `title`, `summary`, `usage` or `says`, and descriptions of settings in
`description`: an edit of these makes no job run again (`aird.support.code_dependencies`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from importlib.metadata import entry_points
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

FILES = "AIRD_PLUGINS"  # the variable that names files of plug-ins; jobs of a workflow inherit it
ROOT = Path(__file__).resolve().parent.parent


class PluginError(ValueError):
    """A plug-in that cannot be had, or is none."""


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: of the axis; its entry points stand in the group `aird.NAME`.
        package: the project's own plug-ins, a folder of files.
        constant: what a plug-in's file calls the plug-in.
        key: of the settings, that names the plug-in; None where no plug-in has settings. Those of single plug-ins may
            be None.
    """

    name: str
    package: str
    constant: str
    key: str | None = None

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted; nothing is loaded."""
        return sorted({*self.own(), *self._entry_points(), *self._files()})

    def own(self) -> list[str]:
        """Return the names of the project's own plug-ins, sorted; nothing is loaded."""
        return sorted(path.stem for path in self._own())

    def file(self, name: str) -> Path:
        """Return the file of a plug-in, which is not loaded.

        Raises:
            PluginError: there is no such plug-in.
        """
        own = {path.stem: path for path in self._own()}
        if name in own:
            return own[name]
        if name in (files := self._files()):
            return files[name]
        if name in (modules := self._entry_points()):
            try:
                found = importlib.util.find_spec(modules[name])
            except ImportError as error:
                raise PluginError(f"the entry point {name} of aird.{self.name} cannot be found: {error}") from error
            if found is not None and found.origin is not None:
                return Path(found.origin)
        raise PluginError(f"there is no {self.constant.lower()} {name}; write one of {', '.join(self.names())}")

    def load(self, name: str) -> Any:
        """Return a plug-in.

        Raises:
            PluginError: there is no such plug-in, its file cannot be imported or does not hold one, or its settings
                are called otherwise than the plug-in.
        """
        path = self.file(name)
        if path in self._own():
            module = import_module(f"{self.package}.{name}")
        else:
            module = _module(self._entry_points().get(name), path)
        plugin = getattr(module, self.constant, None)
        if plugin is None:
            raise PluginError(f"{path} holds no {self.constant}; end it with {self.constant} = ...")
        if self.key is not None and plugin.settings is not None:
            said = plugin.settings.model_fields[self.key].default if self.key in plugin.settings.model_fields else None
            if said != name:
                raise PluginError(f'{path}: its settings must have the field {self.key}: Literal["{name}"] = "{name}"')
        return plugin

    def of(self, settings: BaseModel) -> Any:
        """Return the plug-in that settings are of."""
        return self.load(getattr(settings, str(self.key)))

    def parse(self, values: Mapping[str, Any]) -> Any:
        """Return the settings of the plug-in that they name.

        Raises:
            pydantic.ValidationError: wrong keys or values.
            PluginError: there is no such plug-in.
        """
        assert self.key is not None, f"{self.name} have no settings"
        return self.load(values[self.key]).settings.model_validate(values)

    def _own(self) -> list[Path]:
        folder = ROOT.joinpath(*self.package.split("."))
        return [path for path in folder.glob("*.py") if path.stem != "__init__"]

    def _entry_points(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=f"aird.{self.name}")}

    def _files(self) -> dict[str, Path]:
        """Return the files of AIRD_PLUGINS that hold a plug-in of this axis; those are imported to find out."""
        return {path.stem: path for path in plugin_files() if hasattr(_module(None, path), self.constant)}


RECIPES = Axis("recipes", "aird.compression.recipes", "RECIPE", "recipe")
FORMATS = Axis("formats", "aird.models.formats", "FORMAT")
METHODS = Axis("methods", "aird.patching.methods", "METHOD", "method")
ENGINES = Axis("engines", "aird.evaluation.engines", "ENGINE")
JUDGES = Axis("judges", "aird.evaluation.judges", "JUDGE", "kind")
ATTACKS = Axis("attacks", "aird.evaluation.attacks", "ATTACK", "kind")
TABLES = Axis("tables", "aird.reporting.tables", "TABLE")
AXES = (RECIPES, FORMATS, METHODS, ENGINES, JUDGES, ATTACKS, TABLES)


def use_files(paths: Iterable[str]) -> None:
    """Look for plug-ins in these files from now on, in this process and in those that it starts.

    Raises:
        PluginError: there is no such file, or it holds no plug-in.
    """
    files = [Path(path).absolute() for path in paths]
    for file in files:
        if not file.is_file():
            raise PluginError(f"there is no file {file}; write the path of a Python file that holds a plug-in")
        if not any(hasattr(_module(None, file), axis.constant) for axis in AXES):
            raise PluginError(
                f"{file} holds no plug-in; end it with one of {', '.join(a.constant for a in AXES)} = ..."
            )
    os.environ[FILES] = os.pathsep.join(map(str, files))


def plugin_files() -> list[Path]:
    """Return the files that plug-ins are looked for in, besides packages."""
    return [Path(path) for path in os.environ.get(FILES, "").split(os.pathsep) if path]


def _module(name: str | None, path: Path) -> ModuleType:
    """Return a module by its name, or by its file, which is then imported under a name that no other module has."""
    name, file = (name, None) if name else (f"aird_plugin_{path.stem}", path)
    try:
        if file is None:
            return import_module(name)
        known = sys.modules.get(name)
        if known is not None and known.__file__ == str(path):
            return known
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise PluginError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


@dataclass(frozen=True)
class OneOf:
    """Marks a type of settings as those of any plug-in of an axis: `Annotated[PatchSettings, OneOf(METHODS)]`.

    The plug-in is chosen by the axis's key and loaded then. The JSON schema has all that there are.
    """

    axis: Axis

    def settings(self, name: str) -> type[BaseModel] | None:
        """Return the model of the settings of a plug-in, if it has settings."""
        model: type[BaseModel] | None = self.axis.load(name).settings
        return model

    def names(self) -> list[str]:
        """Return the names of all plug-ins that have settings; they are loaded for it."""
        return [name for name in self.axis.names() if self.settings(name) is not None]

    def validate(self, values: Any) -> BaseModel:
        """Return the settings of the plug-in that they name; errors stand below the plug-in's name."""
        if isinstance(values, BaseModel):
            return values
        if not isinstance(values, Mapping):
            raise PydanticCustomError("model_type", "must be a table of settings")
        key = str(self.axis.key)
        if key not in values:
            raise PydanticCustomError("union_tag_not_found", "no plug-in is named")
        name = values[key]
        if not isinstance(name, str) or name not in self.axis.names():
            raise PydanticCustomError("union_tag_invalid", "there is no such plug-in")
        try:
            model = self.settings(name)
        except PluginError as error:
            raise PydanticCustomError("plugin", "{reason}", {"reason": str(error)}) from error
        if model is None:
            raise PydanticCustomError("union_tag_invalid", "the plug-in has no settings")
        below: dict[str, BaseModel] = TypeAdapter(dict[str, model]).validate_python({name: values})  # type: ignore[valid-type]
        return below[name]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the plug-in's own model; it serialises itself."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the alternatives, which are all loaded for it."""
        models: Any = reduce(or_, map(self.settings, self.names()))
        return handler(TypeAdapter(Annotated[models, Field(discriminator=self.axis.key)]).core_schema)


@dataclass(frozen=True)
class EachOf:
    """Marks a table with the settings of plug-ins below their names: `Annotated[dict[str, Settings], EachOf(...)]`.

    A validated table holds those that are named, whose plug-ins alone are loaded. The JSON schema has all.

    Attributes:
        axis: whose plug-ins.
        base: of models of settings.
        says: what the table is.
    """

    axis: Axis
    base: type[BaseModel]
    says: str

    def model(self, names: Iterable[str] | None = None) -> type[BaseModel]:
        """Return the model of a table of some plug-ins, or of all."""
        settings = {name: self.axis.load(name).settings for name in (self.axis.names() if names is None else names)}
        fields: Mapping[str, Any] = {
            name: (model, Field(model(), description=f"Settings of {name}.")) for name, model in settings.items()
        }
        return create_model(self.axis.name.capitalize(), __base__=self.base, __doc__=self.says, **fields)

    def validate(self, values: Any) -> dict[str, BaseModel]:
        """Return the settings by the names of their plug-ins."""
        if not isinstance(values, Mapping):
            raise PydanticCustomError("model_type", "must be a table of settings")
        known = [name for name in values if name in self.axis.names()]
        table = self.model(known).model_validate(values)
        return {name: getattr(table, name) for name in known}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the plug-ins' own models, which serialise themselves."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe all plug-ins, which are loaded for it."""
        # A list, as only a model inside another type gets a definition of its own.
        table: Any = self.model()
        return dict(handler(TypeAdapter(list[table]).core_schema)["items"])
