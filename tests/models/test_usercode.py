"""What a user's function depends on, and that an edited one is loaded anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.models.usercode import fingerprint, load_function


def test_an_edited_file_is_loaded_anew(tmp_path: Path) -> None:
    file = tmp_path / "edited_metric.py"
    seen = []
    for value in (1, 1, 2):
        file.write_text(f"def score():\n    return {value}\n")
        seen.append(load_function(f"{file}:score", "--metric"))
    assert seen[0] is seen[1]
    assert [function() for function in seen] == [1, 1, 2]


@pytest.mark.parametrize("name", ["labels.txt", "threshold.json", "parts/helper.py", "weights.npz"])
def test_what_the_code_names_beside_it_belongs_to_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text(
        "from parts import helper\nopen('threshold.json')\nopen('labels.txt')\n"
        "def score(): return 1\n"
    )
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    prints = []
    for content in ("first", "another"):
        other.write_text(content)
        prints.append(fingerprint(f"{file}:score"))
    assert prints[0] != prints[1]


def test_what_merely_lies_there_does_not(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text("def score(): return 1\n")
    before = fingerprint(f"{file}:score")
    (tmp_path / "run.log").write_text("a log")
    (tmp_path / "net.optimized").mkdir()
    (tmp_path / "net.optimized" / "serve.py").write_text("import onnxruntime")
    assert fingerprint(f"{file}:score") == before


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def score(): return load('tables', 'cost.npy')", "tables/cost.npy"),
        ("def score(): return load('tables')", "tables/deep/er/cost.txt"),
        ("def score(): return open(Path(__file__).with_suffix('.txt'))", "metric.txt"),
        ("def score(): return read(FOLDER / 'settings')", "settings.yaml"),
    ],
)
def test_data_that_is_not_named_in_full_belongs_to_it(code: str, name: str, tmp_path: Path) -> None:
    file, other = tmp_path / "metric.py", tmp_path / name
    file.write_text(code)
    other.parent.mkdir(parents=True, exist_ok=True)
    prints = []
    for content in ("first", "another"):
        other.write_text(content)
        prints.append(fingerprint(f"{file}:score"))
    assert prints[0] != prints[1]
