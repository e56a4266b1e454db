"""Configurations as TOML: recipes, files and overrides of the command line in, and out again."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Any

from r1train.config.paths import anchored
from r1train.config.schema import ConfigError, Section, build, field_docs, nearest, own_first, shown
from r1train.config.sections import Config
from r1train.config.stages import StageConfig


def recipes() -> dict[str, Path]:
    """Name and file of every recipe that comes with the package."""
    folder = Path(str(files("r1train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def listed() -> str:
    """The recipes that come with the package, in groups: those that run as they are, and those of
    papers, which need their models and data."""
    groups: dict[str, list[str]] = {"demos": [], "presets": []}
    for name, path in recipes().items():
        groups["presets" if "reference" in _read(path) else "demos"].append(name)
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items())


def load_config(
    recipe_or_path: str | Path, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> Config:
    """Configuration of a recipe (by name) or of a TOML file, after `section.key=value` overrides.
    Relative paths of the file, but not of overrides, are those of `folder`, where it is given.

    Override values are TOML (`grpo.max_steps=3`, `stages=["sft"]`); what is not is taken as a bare
    string, and `none` clears an optional key. Raises ConfigError.
    """
    path = _find(recipe_or_path)
    values = _read(path)
    if folder is not None:
        values = anchored(values, folder)
    for override in overrides:
        _override(values, override)
    _check_one_model(values, path, overrides)
    try:
        return _config(values, path)
    except ConfigError as error:
        if overrides and _accepts(path):
            raise
        raise ConfigError(f"{path}: {error}") from None


def default_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration without a file, after the same overrides. Raises ConfigError."""
    values: dict[str, Any] = {}
    for override in overrides:
        _override(values, override)
    config: Config = build(Config, values)
    return config


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML that `load_config` reads back to an equal one."""
    import tomli_w

    return tomli_w.dumps(_without_none(values(config)))


def values(config: Config) -> dict[str, Any]:
    """The options as a file has them: a stage's own sections stand beside its other keys."""
    found = asdict(config)
    for stage in found["stages"]:
        stage.update(_told(stage.pop("sections")))
    return found


def _told(value: Any) -> Any:
    """With "none" for None, which a stage's own section means as a value."""
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    return "none" if value is None else value


def documented(config: Config) -> str:
    """The same with every option's documentation; those that are unset are comments."""
    return "\n".join(_documented(config, "")) + "\n"


def _documented(section: Section, name: str) -> Iterator[str]:
    import tomli_w

    docs = field_docs(type(section))
    tables: list[tuple[Section | dict[str, Any], str]] = []
    if name:
        yield from ("", *_comment((type(section).__doc__ or "").partition("\n")[0]))
        yield name
    for field in own_first(type(section)):
        value = getattr(section, field.name)
        inner = name.strip("[]") + "." * bool(name) + field.name
        if isinstance(section, StageConfig) and field.name == "sections":
            yield from _own_sections(section)
        elif isinstance(value, Section):
            tables.append((value, f"[{inner}]"))
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            tables.extend((item, f"[[{inner}]]") for item in value)
        elif isinstance(value, dict):
            tables.append((value, f"[{inner}]"))
        else:
            yield from ("", *_comment(docs[field.name]))
            known = value is not None
            yield tomli_w.dumps({field.name: value}).rstrip() if known else f"# {field.name} ="
    for value, header in tables:
        if isinstance(value, Section):
            yield from _documented(value, header)
        else:
            key = header.strip("[]").rpartition(".")[2]
            options = (f"{_key(name)} = {_inline(option)}" for name, option in value.items())
            yield from ("", *_comment(docs[key]), header, *options)


def _own_sections(stage: StageConfig) -> Iterator[str]:
    """What a stage lays over the sections of the recipe, documented like these."""
    for name, own in stage.sections.items():
        docs = field_docs(type(getattr(Config(), name)))
        yield from ("", f"[stages.{name}]")
        for key, value in own.items():
            yield from ("", *_comment(docs.get(key, "")), f"{key} = {_inline(value)}")


def _inline(value: Any) -> str:
    """A value on one line, tables too."""
    import tomli_w

    if isinstance(value, dict):
        inner = (f"{_key(key)} = {_inline(item)}" for key, item in value.items())
        return f"{{ {', '.join(inner)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"_": "none" if value is None else value}).partition("=")[2].strip()


def _key(name: str) -> str:
    """In quotes where TOML wants them, as in "cons@16"."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


def _comment(text: str) -> list[str]:
    return wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _find(recipe_or_path: str | Path) -> Path:
    path, known = Path(recipe_or_path), recipes()
    if str(recipe_or_path) in known:
        return known[str(recipe_or_path)]
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: name a TOML file, such as its config.toml")
        if path.is_file():
            return path
    except OSError as error:  # too long a name, for one
        raise ConfigError(f"{shown(str(path))}: {error.strerror}") from None
    if path.suffix == ".toml":
        raise ConfigError(f"no such file: {path}")
    raise ConfigError(f"unknown recipe {shown(str(path))}; the recipes are {listed()}")


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:4]:  # half of an ASCII letter
        kind = "UTF-32" if b"\0\0" in raw[:4] else "UTF-16"
        raise ConfigError(f"{path}: the file is {kind}: save it as UTF-8")
    try:
        return _extended(_parse(raw.decode("utf-8-sig")), path)
    except UnicodeDecodeError as error:
        kind = f"neither UTF-8 nor ASCII at byte {error.start}"
        raise ConfigError(f"{path}: the file is {kind}: save it as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _extended(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """With what `extends = "RECIPE"` takes from another recipe: tables key by key, figures of its
    source and whatever is a list as a whole."""
    name = values.pop("extends", None)
    if name is None:
        return values
    if name not in recipes() or recipes()[name] == path:
        reason = f"expected another recipe: {nearest(str(name), recipes())}"
        raise ConfigError(f"{path}: extends = {shown(name)}: {reason}")
    return _over(_read(recipes()[name]), values)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    found = {**below, **above}
    for key in below.keys() & above.keys() - {"figures"}:
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            found[key] = _over(below[key], above[key])
    return found


def _parse(text: str) -> dict[str, Any]:
    """The TOML document; a ValueError, of which TOMLDecodeError is one, where it is none."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    *sections, key = dotted.strip().split(".")
    if sections[:1] == ["stages"]:
        values, sections = _stage(values, override, sections[1:])
    if not equals or not key or not all(sections):
        raise ConfigError(f"override {shown(override)}: expected section.key=value")
    try:
        parsed = _parse(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text.strip()
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except ValueError as error:  # a number of more digits than Python reads, for one
        raise ConfigError(f"override {shown(override)}: {error}") from None
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {shown(override)}: '{section}' is not a section")
    values[key] = value


def _stage(
    values: dict[str, Any], override: str, names: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """The table of the stage that `stages.NAME.section.key` is about, and what follows its name."""
    stages = values.get("stages", [stage.name for stage in Config().stages])
    if not names or not isinstance(stages, list):
        raise ConfigError(f"override {shown(override)}: expected stages.NAME.section.key=value")
    stages = [{"kind": one, "name": one} if isinstance(one, str) else one for one in stages]
    values["stages"] = stages
    known = [one.get("name", one.get("kind")) for one in stages if isinstance(one, dict)]
    if names[0] not in known:
        reason = nearest(names[0], map(str, known))
        raise ConfigError(f"override {shown(override)}: no stage {shown(names[0])}: {reason}")
    return stages[known.index(names[0])], names[1:]


def _check_one_model(values: dict[str, Any], path: Path, overrides: Sequence[str]) -> None:
    """A path on the command line does not replace the preset of the file unasked."""
    model = values.get("model")
    given = any(override.lstrip().startswith("model.path") for override in overrides)
    if not isinstance(model, dict) or not given:
        return
    preset, folder = model.get("preset", "none"), model.get("path", "none")
    if preset != "none" and folder != "none":
        raise ConfigError(
            f"model.path = {shown(folder)}: {path} has model.preset = {shown(preset)}, and a model "
            "comes from one of the two; add model.preset=none"
        )


def _config(values: dict[str, Any], path: Path) -> Config:
    config: Config = build(Config, {"name": path.stem, **values})
    return config


def _accepts(path: Path) -> bool:
    """Whether the file alone is a configuration, so that an override is what is wrong."""
    try:
        _config(_read(path), path)
    except ConfigError:
        return False
    return True


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
