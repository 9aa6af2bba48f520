"""Write the pages that follow from the code: docs/cli.md, report-schema.md and report.schema.json.

    python docs/generate.py

tests/docs/test_site.py fails while they differ from the code.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from optimize.passes.base import Pass

DOCS = Path(__file__).resolve().parent
_COMMANDS = ("run", "compare", "profile", "verify", "report", "doctor", "passes", "cache")


def pages() -> dict[str, str]:
    """The generated files, by their names in docs/."""
    return {
        "cli.md": cli(),
        "report-schema.md": report_schema(),
        "report.schema.json": json_schema(),
    }


def cli() -> str:
    """Every command with its options, then every built-in pass with its."""
    from typer.main import get_command

    from optimize.cli import app

    root: Any = get_command(app)
    names = [*_COMMANDS, *sorted(root.commands.keys() - set(_COMMANDS))]
    parts = [
        "# The command line",
        "Written by `docs/generate.py` from the program itself. `optimize --help` shows the same.",
    ]
    for name in names:
        title = "optimize MODEL" if name == "run" else f"optimize {name}"
        parts.extend(_command(title, root.commands[name]))
    parts.append("## Passes")
    parts.append("Chains name passes in order, with options in braces: `fold,int8{mode=static}`.")
    parts.extend(_passes())
    return "\n\n".join(parts) + "\n"


def _command(title: str, command: Any) -> Iterator[str]:
    """A heading, what it does, and its options; a group's commands one level below."""
    yield f"## {title}"
    yield _sentence(inspect.cleandoc(command.help or ""))
    for name, inner in getattr(command, "commands", {}).items():
        yield f"### {title} {name}"
        yield _sentence(inner.help)
        yield from _options(inner)
    yield from _options(command)
    if command.epilog:
        yield _sentence(command.epilog)


def _options(command: Any) -> Iterator[str]:
    rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows.append((parameter.metavar, parameter.help or "", ""))
        elif parameter.name not in ("help", "version"):
            text, default = _split_default(parameter)
            rows.append((" ".join(_spelling(parameter)), text, default))
    if rows:
        yield _table(("option", "meaning", "default"), ((f"`{o}`", t, d) for o, t, d in rows))


def _spelling(option: Any) -> Iterator[str]:
    yield max(option.opts, key=len)
    if not option.is_flag:
        kinds = {int: "N", float: "NUMBER"}
        yield option.metavar or kinds.get(option.type_descriptor.annotation, "TEXT")


def _split_default(option: Any) -> tuple[str, str]:
    """Help and default, which texts carry at their ends where it is no plain value."""
    text, bracket, default = (option.help or "").partition("[default: ")
    if bracket:
        return text.strip(), default.rstrip("]")
    plain = option.default is not None and not option.is_flag and not option.multiple
    return text.strip(), f"`{option.default}`" if plain else ""


def _passes() -> Iterator[str]:
    from optimize.passes.registry import _BUILT_IN, load_pass

    for name in _BUILT_IN:
        found = load_pass(name)
        yield f"### {name}"
        yield from _described(found)
        if found.tolerance is not None:
            yield (
                f"Outputs may change by {found.tolerance:g} of the largest value at most; "
                "that is checked."
            )
        if found.needs:
            yield f"Needs {found.needs}."
        yield from _pass_options(found)


def _pass_options(found: type[Pass]) -> Iterator[str]:
    from optimize.passes.chain import options

    meanings = attributes(found)
    rows = [
        (f"`{field.name}`", option.type, _default(field), meanings.get(field.name))
        for field, option in zip(fields(found), options(found), strict=True)
    ]
    if rows:
        head = ("option", "values", "default", "meaning")
        yield _table(head, rows) if meanings else _table(head[:-1], (row[:-1] for row in rows))


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required"
    text = str(field.default)
    return f"`{text.lower() if isinstance(field.default, bool) else text}`"


def _described(cls: type) -> Iterator[str]:
    """The docstring's paragraphs up to its list of attributes."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[0]
    for paragraph in filter(None, text.split("\n\n")):
        yield _prose(" ".join(paragraph.split()))


def report_schema() -> str:
    """Every class of the report with its fields, outermost first."""
    from optimize.results.report import SCHEMA, Report

    parts = [
        "# The report's schema",
        f"`report.json` is one object of schema {SCHEMA}. The number is raised when a field "
        "changes its meaning or goes; new fields may come without. A run writes every field; those "
        "marked optional may be missing in files of earlier versions. Written by "
        "`docs/generate.py` from `optimize/results/report.py`; for programs there is "
        "[a JSON Schema](report.schema.json).",
        'From Python: `Report.from_json(Path("report.json").read_text())`, imported from '
        "`optimize`, gives it as frozen dataclasses. None is `null` in the file.",
    ]
    for cls in _classes(Report):
        meanings = attributes(cls)
        parts.append(f"## {cls.__name__}")
        parts.extend(_described(cls))
        hints = get_type_hints(cls)
        parts.append(
            _table(
                ("field", "type", "meaning") if meanings else ("field", "type"),
                (
                    (f"`{field.name}`", _type(hints[field.name], field), meanings.get(field.name))[
                        : 3 if meanings else 2
                    ]
                    for field in fields(cls)
                ),
            )
        )
    return "\n\n".join(parts) + "\n"


def json_schema() -> str:
    """The report's JSON Schema (draft 2020-12), for editors and validators."""
    from pydantic import TypeAdapter

    from optimize.results.report import Report

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | TypeAdapter(Report).json_schema(), indent=2) + "\n"


def _classes(root: type) -> list[type]:
    """``root`` and the dataclasses in its fields, each once, breadth first."""
    found = [root]
    for cls in found:
        for hint in get_type_hints(cls).values():
            found.extend(inner for inner in _dataclasses(hint) if inner not in found)
    return found


def _dataclasses(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses(inner)


def _type(hint: Any, field: Field[Any]) -> str:
    """A type in JSON's words, linked where it is a class of the report."""
    optional = field.default is not MISSING or field.default_factory is not MISSING
    return f"{_json_words(hint)}{', optional' if optional else ''}"


def _json_words(hint: Any) -> str:
    words = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
    if hint in words:
        return words[hint]
    if is_dataclass(hint):
        name = getattr(hint, "__name__", "")
        return f"[{name}](#{name.lower()})"
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin is dict:
        return f"object of {_json_words(inner[1])}"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_json_words(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {', '.join(map(_json_words, inner))}"
    return " or ".join(map(_json_words, inner))


def attributes(cls: type) -> dict[str, str]:
    """What the docstring's ``Attributes:`` section says of each field."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n\n")[0].splitlines():
        start = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, _prose(start[2]))
        else:
            found |= {name: f"{found[name]} {_prose(line.strip())}" for name in names}
    return found


def _prose(text: str) -> str:
    """A docstring's text in Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str | None, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> None:
    """Write all of them."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
