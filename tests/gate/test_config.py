"""What a file may say, and what is said of one that is wrong: file, line, and the right choice."""

from __future__ import annotations

import json
import string
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.errors import InputError
from optimize.gate.config import ConfigError, find
from optimize.gate.lines import line_of
from optimize.gate.schema import Options, json_schema

if TYPE_CHECKING:
    from gate.conftest import Declare

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = '[models.digits]\nsource = "net.onnx"\nbudget = "p99=20ms"\n'


def faults(declare: Declare, text: str, name: str = "optimize.toml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        declare(text, name)
    return [str(fault).removeprefix(f"{fault.file.parent}/") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "no model is declared; add [models.NAME]"),
        ("# nothing\n", 1, "no model is declared"),
        ("models = 3\n", 1, "models is 3; it should be a table"),
        ('[models.digits]\nbudget = "p99=20ms"\n', 1, "models.digits.source is missing"),
        ('[models.digits]\nsource = "net.onnx"\n', 1, "models.digits has no budget"),
        (GOOD + 'budgt = "p99=1ms"\n', 4, "models.digits.budgt is not known; did you mean budget?"),
        (GOOD + "threads = 0\n", 4, "threads is 0; it should be greater than or equal to 1"),
        (GOOD + 'threads = "two"\n', 4, 'threads is "two"; it should be a valid integer'),
        (GOOD + "trust_pickle = 1\n", 4, "trust_pickle is 1; it should be a valid boolean"),
        (GOOD + 'time_limit = "5"\n', 4, "'5' is no duration; write for example 90s, 10m"),
        (GOOD + 'floor = "drop"\n', 4, "floor 'drop' is not of the form NAME=NUMBER"),
        (GOOD + 'chains = [\n  "fold,fuse",\n  "fold,fusee",\n]\n', 4, "did you mean fuse?"),
        (GOOD + 'inputs = "image"\n', 4, "'image' is not of the form name=SHAPE:TYPE"),
        (GOOD + 'objective = "speed"\n', 4, "should be 'latency', 'accuracy' or 'size'"),
        (GOOD + 'tolerance = "0%"\n', 4, "is no share above zero; write for example 10%"),
        (GOOD + 'metric_tolerance = "x"\n', 4, "write for example 0.01, 1% or none"),
        (GOOD.replace("20ms", "20"), 3, "has no unit; write one of ns, us, ms, s"),
        (GOOD.replace('"p99=20ms"', "5"), 3, "budget is 5; it should be a text or a list of texts"),
        (GOOD.replace('"p99=20ms"', "[]"), 3, "budget is empty"),
        (GOOD.replace('"p99=20ms"', '["p99=1s", "p99=2s"]'), 3, "p99 is declared twice"),
        (GOOD.replace('"p99=20ms"', '{prod = "p99=1s"}'), 3, "there is no [targets.prod]"),
        (GOOD + "[targets.prod]\n", 4, "targets.prod has no condition"),
        (GOOD + '[targets.any]\ncpu = "*"\n', 4, "the name any is taken"),
        (GOOD + '[targets.prod]\ncores = 2\ncpuu = "*"\n', 6, "did you mean cpu?"),
        (GOOD + '[targets.prod]\nmin_memory = "8"\n', 5, "has no unit; write one of kB, MB, GB"),
        (GOOD + "[default]\nthreads = 1\n", 4, "default is not known; did you mean defaults?"),
        (GOOD.replace("digits", '"../up"'), 1, "a name has letters, digits, dots, - and _"),
        (GOOD + '[targets."a@b"]\ncores = 2\n', 4, "a name has letters, digits"),
        (GOOD + "[models.digits]\n", 4, "this is not TOML"),
        (GOOD + 'data = "val\n', 4, "this is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    text: str, line: int, words: str, declare: Declare
) -> None:
    found = faults(declare, text)
    assert len(found) == 1
    assert found[0].startswith(f"optimize.toml:{line}: ")
    assert words in found[0]


def test_all_mistakes_are_named_in_the_order_of_their_lines(declare: Declare) -> None:
    text = '[models.a]\nsorce = "x"\n[defaults]\nthreads = "2"\n[models.b]\nsource = 3\n'
    lines = [int(fault.split(":")[1]) for fault in faults(declare, text)]
    assert lines == [1, 2, 4, 6]


def test_a_budget_of_any_device_and_of_a_target_must_not_both_name_a_percentile(
    declare: Declare,
) -> None:
    budget = '{any = "p99=1s", prod = ["size=1MB", "p99=2s"]}'
    text = GOOD.replace('"p99=20ms"', budget) + "[targets.prod]\ncores = 2\n"
    assert "p99 is declared twice, for any and for prod" in faults(declare, text)[0]


def test_pyproject_is_read_under_its_own_table(declare: Declare) -> None:
    text = '[project]\nname = "x"\n\n' + GOOD.replace("[models", "[tool.optimize.models")
    assert declare(text, "pyproject.toml").options("digits").source == "net.onnx"
    wrong = faults(declare, text + "thread = 1\n", "pyproject.toml")
    assert wrong[0].startswith("pyproject.toml:7: models.digits.thread is not known")


def test_a_model_says_more_than_the_defaults(declare: Declare) -> None:
    declared = declare(
        '[defaults]\nthreads = 4\nseed = 7\nbudget = "p99=9ms"\nruntime = "all"\n'
        '[models.one]\nsource = "one.onnx"\nthreads = 1\n'
        '[models.two]\nsource = "two.onnx"\nbudget = ["p50=1ms", "size=1MB"]\n'
    )
    one, two = declared.options("one"), declared.options("two")
    assert (one.threads, one.seed, one.budget) == (1, 7, {"any": ["p99=9ms"]})
    assert (two.threads, two.seed, two.budget) == (4, 7, {"any": ["p50=1ms", "size=1MB"]})
    assert one.runtime == two.runtime == ["all"]
    assert one.confidence == Options().confidence


def test_the_file_is_looked_for_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no optimize\.toml here.*optimize init MODEL"):
        find(None)
    (tmp_path / "pyproject.toml").write_text("[tool.other]\n")
    with pytest.raises(InputError, match=r"no \[tool\.optimize\]"):
        find(None)
    (tmp_path / "pyproject.toml").write_text("[tool.optimize.models.x]\nsource = 'a'\n")
    assert find(None) == Path("pyproject.toml")
    (tmp_path / "optimize.toml").write_text("")
    assert find(None) == Path("optimize.toml")
    with pytest.raises(InputError, match=r"--config other\.toml does not exist"):
        find("other.toml")


KEY = st.text(string.ascii_lowercase, min_size=1, max_size=6)
VALUE = st.one_of(
    st.integers(0, 99).map(str),
    st.text(string.ascii_letters + "#[]=.\u2028\x85 ", max_size=8).map(json.dumps),
    st.just('"""\nkey = 1\n[table]\n"""'),
    st.just("[\n  1, # key = 2\n  2,\n]"),
    st.just("{ key = 1 }"),
)
TABLES = st.dictionaries(KEY, st.dictionaries(KEY, VALUE, max_size=4), min_size=1, max_size=4)


@given(TABLES, st.sampled_from(["", "# key = 1\n", "\n\n"]), st.sampled_from(["\n", "\r\n"]))
def test_the_line_of_every_key_is_where_it_was_written(
    tables: dict[str, dict[str, str]], between: str, end: str
) -> None:
    text, known = "", {}
    for name, keys in tables.items():
        text += between
        known[(name,)] = text.count("\n") + 1
        text += f"[{name}]\n"
        for key, value in keys.items():
            text += between
            known[(name, key)] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    text = text.replace("\n", end)
    tomllib.loads(text)
    for path, line in known.items():
        assert line_of(text, path) == line
    assert line_of(text, ("not there",)) == 1


def test_the_schema_for_editors_is_current() -> None:
    """Else: optimize check --schema > docs/optimize.schema.json."""
    assert (REPOSITORY / "docs" / "optimize.schema.json").read_text() == json_schema()


def test_the_schema_knows_every_option_and_no_null() -> None:
    schema: dict[str, Any] = json.loads(json_schema())
    model = schema["$defs"]["ModelSection"]
    assert set(model["properties"]) == {*Options.model_fields, "source", "out"}
    assert model["required"] == ["source"]
    assert model["additionalProperties"] is False
    assert "null" not in json_schema()
