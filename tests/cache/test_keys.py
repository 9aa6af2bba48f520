"""Keys depend on what the parts say, and on nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.cache.entries import key_of
from optimize.cache.store import Store, default_folder
from optimize.errors import InputError

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
parts = st.dictionaries(st.text(), values, max_size=6)


@given(parts, st.randoms())
def test_the_order_of_names_does_not_matter(given: dict[str, Any], random: Any) -> None:
    names = list(given)
    random.shuffle(names)
    assert key_of({name: given[name] for name in names}) == key_of(given)


@given(parts, parts)
def test_different_parts_have_different_keys(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (key_of(one) == key_of(two)) == (repr(_ordered(one)) == repr(_ordered(two)))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return [(name, _ordered(value[name])) for name in sorted(value)]
    return [_ordered(item) for item in value] if isinstance(value, list) else value


def test_the_key_is_the_digest_of_canonical_json() -> None:
    # sha256sum of {"a":[1,2],"b":"x"}
    assert (
        key_of({"b": "x", "a": (1, 2)})
        == "d0f56dda38d34376527524ddd98f7ec117d5cbfb240f86e11bfb9d2d01a717d9"
    )


def test_another_process_finds_the_same_key() -> None:
    code = "from optimize.cache.entries import key_of; print(key_of({'seed': 0, 'pass': 'int8{mode=static}'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key_of({"pass": "int8{mode=static}", "seed": 0})


@pytest.mark.parametrize("value", [Path("x"), b"x", {1, 2}, object()])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        key_of({"part": value})


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        key_of({"part": float("nan")})


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_text_that_is_no_key_reaches_no_file(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for use in (store.get, store.document, store.drop, lambda k: store.put(k, b"x")):
        with pytest.raises(ValueError, match="no key"):
            use(text)
    assert list(tmp_path.iterdir()) == []


def test_the_place_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "optimize"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == tmp_path / "home" / ".cache" / "optimize"


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is no folder"):
        Store(tmp_path / "file")
