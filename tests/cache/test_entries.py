"""What is put is found again, byte for byte, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from cache.conftest import MakeFolder, contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimize.cache.entries import key_of
from optimize.cache.store import Store

KEY = key_of({"chain": "fold,fuse"})
MODEL = {"model.onnx": b"graph" * 100, "sub/weights.data": os.urandom(5000), "empty": b""}


def test_a_folder_is_found_by_this_and_by_later_processes(
    store: Store, make_folder: MakeFolder
) -> None:
    made = make_folder(MODEL)
    assert store.get(KEY) is None
    put = store.put(KEY, made, {"what": "fold,fuse", "notes": ["a", {"b": 1.5}]})
    shutil.rmtree(made)
    for found in (put, store.get(KEY), Store(store.folder).get(KEY)):
        assert found is not None
        assert contents(found.path) == MODEL
        assert found.meta == {"what": "fold,fuse", "notes": ["a", {"b": 1.5}]}
        assert found.digests == {n: hashlib.sha256(c).hexdigest() for n, c in MODEL.items()}
        assert found.size_bytes == sum(map(len, MODEL.values()))


def test_files_called_like_the_stores_own_are_kept_apart(
    store: Store, make_folder: MakeFolder
) -> None:
    mine = {"entry.json": b"mine", "document": b"mine too", "files/x": b""}
    entry = store.put(KEY, make_folder(mine))
    assert entry is not None
    assert contents(entry.path) == mine
    assert store.get(KEY) == entry or store.get(KEY).meta == {}  # only the time of use differs


@given(st.binary(max_size=2000), st.dictionaries(st.text(), st.integers() | st.text(), max_size=4))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
def test_documents_come_back(store: Store, content: bytes, meta: dict[str, object]) -> None:
    key = key_of({"n": len(content), "content": content.hex(), "meta": meta})
    assert store.put(key, content, meta) is not None
    assert store.document(key) == content
    assert store.get(key).meta == meta


def test_a_second_put_changes_nothing(store: Store) -> None:
    store.put(KEY, b"first")
    assert store.put(KEY, b"second") is not None
    assert store.document(KEY) == b"first"
    store.drop(KEY)
    assert store.get(KEY) is None
    store.put(KEY, b"second")
    assert store.document(KEY) == b"second"


def test_linked_files_take_no_second_place_on_the_disk(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"weights")
    entry = store.put(KEY, made, link=True)
    assert entry is not None
    assert (entry.path / "model.onnx").samefile(made / "model.onnx")
    copied = store.put(key_of({"other": 1}), made)
    assert copied is not None
    assert not (copied.path / "model.onnx").samefile(made / "model.onnx")


def entry_files(store: Store) -> list[Path]:
    return sorted(p for p in (store.folder / "v1" / "entries" / KEY).rglob("*") if p.is_file())


@given(st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
def test_a_changed_byte_anywhere_is_noticed_and_the_entry_built_again(
    tmp_path_factory: pytest.TempPathFactory, make_folder: MakeFolder, data: st.DataObject
) -> None:
    said: list[str] = []
    store = Store(tmp_path_factory.mktemp("cache"), report=said.append)
    entry = store.put(KEY, make_folder(MODEL), {"what": "fold"})
    file = data.draw(st.sampled_from([f for f in entry_files(store) if f.stat().st_size]))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    found = store.get(KEY)
    if found is not None:  # white space of the index may change
        assert file.name == "entry.json"
        assert (found.meta, found.digests) == (entry.meta, entry.digests)
    else:
        assert len(said) == 1
        assert "damaged" in said[0]
        assert file.name in said[0]
        assert KEY[:12] in said[0]
        assert entry_files(store) == []
        assert store.put(KEY, make_folder(MODEL)) is not None
        assert contents(store.get(KEY).path) == MODEL
    store.close()


@pytest.mark.parametrize("name", ["files/model.onnx", "entry.json"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 7)]
)
def test_missing_and_cut_files_are_noticed(
    store: Store, said: list[str], make_folder: MakeFolder, name: str, damage: object
) -> None:
    store.put(KEY, make_folder(MODEL))
    damage(store.folder / "v1" / "entries" / KEY / name)  # type: ignore[operator]
    assert store.get(KEY) is None
    assert "damaged" in said[0]
    assert store.sizes().entries == 0


def test_an_entry_under_a_strange_key_is_not_believed(store: Store, said: list[str]) -> None:
    store.put(KEY, b"mine")
    other = key_of({"chain": "other"})
    shutil.copytree(store.folder / "v1" / "entries" / KEY, store.folder / "v1" / "entries" / other)
    assert store.document(other) is None
    assert "damaged" in said[0]
    assert store.document(KEY) == b"mine"


def test_clearing_removes_only_what_the_store_wrote(store: Store, make_folder: MakeFolder) -> None:
    store.put(KEY, make_folder(MODEL))
    store.put(key_of({}), b"12345")
    (store.folder / "mine.txt").write_text("mine")
    for key in (KEY, key_of({})):
        store.release(key)
    cleared = store.clear()
    assert cleared == (2, sum(map(len, MODEL.values())) + 5, 0, 0)
    assert store.entries() == []
    store.close()
    left = [path.name for path in store.folder.rglob("*") if path.is_file()]
    assert sorted(left) == ["lock", "mine.txt"]
