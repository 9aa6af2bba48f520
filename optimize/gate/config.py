"""``optimize.toml`` as it is declared: found, read, and checked line by line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import InputError, nearest
from optimize.gate.lines import line_of
from optimize.gate.names import ANY, FILE, HERE, PROJECT, TOOL

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from optimize.gate.schema import Config, ModelSection

KeyPath = tuple[str | int, ...]
# Folders and test cases are called so.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Fault:
    """One mistake in the file, and the line it is on."""

    file: Path
    line: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.sentence}"


class ConfigError(InputError):
    """The file cannot be used; ``faults`` are all the mistakes that were found."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Join the faults to one message."""
        super().__init__("; ".join(map(str, faults)))
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Declared:
    """A file that is in order.

    Attributes:
        file: where it lies; what it names is relative to its folder.
        config: what it says.
        text: the file itself.
        root: what stands before every key of ``config`` in it.
    """

    file: Path
    config: Config
    text: str
    root: KeyPath = ()

    def line(self, *path: str | int) -> int:
        """The line on which a key is declared."""
        return line_of(self.text, (*self.root, *path))

    def options(self, name: str) -> ModelSection:
        """A model with what the defaults say and it does not."""
        model = self.config.models[name]
        merged = {
            key: getattr(section, key)
            for section in (self.config.defaults, model)
            for key in section.model_fields_set
        }
        return type(model).model_construct(**merged)


def find(given: str | None) -> Path:
    """The file to read: the one given, or ``optimize.toml`` or pyproject.toml in this folder.

    Raises:
        InputError: there is none.
    """
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"--config {given} does not exist")
        return Path(given)
    if Path(FILE).is_file():
        return Path(FILE)
    if Path(PROJECT).is_file() and _within(_parsed(Path(PROJECT))[0], TOOL) is not None:
        return Path(PROJECT)
    raise InputError(
        f"there is no {FILE} here, and no [tool.optimize] in a {PROJECT}; "
        "optimize init MODEL writes a first one, --config names another"
    )


def read(file: Path) -> Declared:
    """Read and check a file.

    Raises:
        ConfigError: it is not TOML, or says what cannot be meant.
    """
    from pydantic import ValidationError

    from optimize.gate.schema import Config

    document, text = _parsed(file)
    root: KeyPath = TOOL if file.name == PROJECT else ()
    content = _within(document, root)
    if not content:
        table = ".".join((*TOOL, "models")) if root else "models"
        raise ConfigError([Fault(file, 1, f"no model is declared; add [{table}.NAME] with "
                                          'source = "..." and budget = "p99=20ms"')])  # fmt: skip
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_faults(error, content, file, text, root)) from None
    declared = Declared(file, config, text, root)
    if faults := list(_contradictions(declared)):
        raise ConfigError(faults)
    return declared


def _parsed(file: Path) -> tuple[dict[str, Any], str]:
    try:
        text = file.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError([Fault(file, 1, "it is no text in UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        sentence, _, place = str(error).partition(" (at line ")
        line = place.partition(",")[0]
        number = int(line) if line.isdigit() else text.count("\n") + 1
        sentence = sentence[:1].lower() + sentence[1:]
        raise ConfigError([Fault(file, number, f"this is not TOML: {sentence}")]) from None


def _within(document: dict[str, Any], root: KeyPath) -> dict[str, Any] | None:
    for key in root:
        inner = document.get(str(key))
        if not isinstance(inner, dict):
            return None
        document = inner
    return document


def _faults(
    error: ValidationError, content: dict[str, Any], file: Path, text: str, root: KeyPath
) -> list[Fault]:
    """Pydantic's findings in our words, in the order of the lines."""
    found: dict[tuple[int, str], Fault] = {}
    for item in error.errors():
        path = _as_written(item["loc"], content)
        line = line_of(text, (*root, *path))
        fault = Fault(file, line, _sentence(item, path))
        found.setdefault((line, fault.sentence), fault)
    return [found[key] for key in sorted(found)]


def _as_written(path: KeyPath, content: Any) -> KeyPath:
    """The path without what validation has put in: targets and lists that were not written."""
    written: list[str | int] = []
    for part in path:
        if isinstance(content, dict) and isinstance(part, str):
            written.append(part)
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            written.append(part)
            content = content[part]
    return tuple(written)


def _sentence(item: ErrorDetails, path: KeyPath) -> str:
    where = _dotted(path)
    if item["type"] == "extra_forbidden":
        return f"{where} is not known; {nearest(str(path[-1]), _keys(path[:-1]))}"
    if item["type"] == "missing":
        return f"{where} is missing; {_meaning(path)}"
    if item["type"] == "too_short":
        return f"{where} is empty"
    if item["type"] == "unreadable":
        return f"{where}: {item['msg']}"
    should = item["msg"].removeprefix("Input ").replace("valid dictionary", "table")
    if item["type"] == "model_type":
        should = "should be a table"
    elif item["type"] == "list_type":
        should = "should be a text or a list of texts"
    return f"{where} is {_shown(item['input'])}; it {should}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _dotted(path: KeyPath) -> str:
    """A key as it would be written, with the positions in lists."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _section(path: KeyPath) -> type[BaseModel]:
    """The model of the table at ``path``."""
    from optimize.gate.schema import Config, ModelSection, Options, TargetSection

    tables: dict[Any, type[BaseModel]] = {
        "models": ModelSection, "targets": TargetSection, "defaults": Options,
    }  # fmt: skip
    return tables.get(path[0], Config) if path else Config


def _keys(path: KeyPath) -> list[str]:
    return list(_section(path).model_fields)


def _meaning(path: KeyPath) -> str:
    text = _section(path[:-1]).model_fields[str(path[-1])].description or "it is needed"
    return text[:1].lower() + text[1:].removesuffix(".")


def _contradictions(declared: Declared) -> Iterator[Fault]:
    """What each table allows, and the tables together do not."""
    from optimize.budgets.budget import Budget

    config, file = declared.config, declared.file
    for table, name in [*(("targets", n) for n in config.targets),
                        *(("models", n) for n in config.models)]:  # fmt: skip
        if not _NAME.fullmatch(name):
            line = declared.line(table, name)
            yield Fault(file, line, f"{table}.{name}: a name has letters, digits, dots, - and _")
    for name in config.targets:
        line = declared.line("targets", name)
        if name in (ANY, HERE):
            yield Fault(file, line, f"targets.{name}: the name {name} is taken; choose another")
        elif not config.targets[name].model_dump(exclude_none=True):
            yield Fault(file, line, f"targets.{name} has no condition, and would be every device; "
                                    'add for example cpu = "AMD EPYC*"')  # fmt: skip
    for name in config.models:
        owner = name if config.models[name].budget else None
        place: KeyPath = ("models", name, "budget") if owner else ("defaults", "budget")
        budgets = declared.options(name).budget if owner or config.defaults.budget else None
        if budgets is None:
            yield Fault(file, declared.line("models", name),
                        f'models.{name} has no budget; add budget = "p99=20ms"')  # fmt: skip
            continue
        for target, texts in budgets.items():
            where = f"{_dotted(place)}.{target}"
            line = declared.line(*place, target)
            if target != ANY and target not in config.targets:
                known = nearest(target, [ANY, *config.targets])
                yield Fault(file, line, f"{where}: there is no [targets.{target}]; {known}")
            shared = budgets.get(ANY, []) if target != ANY else []
            quantities = [Budget.parse(text).quantity for text in (*shared, *texts)]
            if twice := next((q for q in quantities if quantities.count(q) > 1), None):
                also = f", for {ANY} and for {target}" if target != ANY and shared else ""
                yield Fault(file, line, f"{where}: budget {twice} is declared twice{also}")
