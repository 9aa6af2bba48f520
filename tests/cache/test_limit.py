"""The limit holds, and the least recently used goes first: checked against a model."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from optimize.cache.entries import key_of
from optimize.cache.store import Store

LIMIT = 1000
KEYS = [key_of({"n": n}) for n in range(6)]
keys = st.sampled_from(KEYS)


class Used(RuleBasedStateMachine):
    """Two processes' worth of stores on one folder, beside a dictionary in the order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.said: list[str] = []
        self.stores = [Store(self.folder, LIMIT, self.said.append) for _ in range(2)]
        self.model: OrderedDict[str, int] = OrderedDict()
        self.pinned: list[set[str]] = [set(), set()]

    which = st.sampled_from([0, 1])

    @rule(which=which, key=keys, size=st.integers(0, LIMIT + 200), keep=st.booleans())
    def put(self, which: int, key: str, size: int, keep: bool) -> None:
        if key not in self.model and size <= LIMIT:
            held = self.pinned[0] | self.pinned[1]
            for old in list(self.model):
                if sum(self.model.values()) + size <= LIMIT:
                    break
                if old not in held:
                    del self.model[old]
        fits = key in self.model or sum(self.model.values()) + size <= LIMIT
        entry = self.stores[which].put(key, b"x" * size)
        assert (entry is not None) == fits
        if fits:
            self.model.setdefault(key, size)
            self._use(which, key, keep)

    @rule(which=which, key=keys, keep=st.booleans())
    def get(self, which: int, key: str, keep: bool) -> None:
        entry = self.stores[which].get(key)
        assert (entry is not None) == (key in self.model)
        if entry is not None:
            assert (entry.path / "document").stat().st_size == self.model[key]
            self._use(which, key, keep)

    @rule(which=which, key=keys)
    def drop(self, which: int, key: str) -> None:
        self.stores[which].drop(key)
        self.model.pop(key, None)
        for pinned in self.pinned:
            pinned.discard(key)

    @rule(which=which, key=keys)
    def release(self, which: int, key: str) -> None:
        self.stores[which].release(key)
        self.pinned[which].discard(key)

    @rule(which=which)
    def clear(self, which: int) -> None:
        held = self.pinned[0] | self.pinned[1]
        cleared = self.stores[which].clear()
        assert cleared.in_use == len(held)
        assert cleared.size_bytes == sum(n for key, n in self.model.items() if key not in held)
        self.model = OrderedDict((k, n) for k, n in self.model.items() if k in held)

    @rule(which=which)
    def reopen(self, which: int) -> None:
        self.stores[which].close()
        self.stores[which] = Store(self.folder, LIMIT, self.said.append)
        self.pinned[which].clear()

    @invariant()
    def agrees(self) -> None:
        entries = self.stores[0].entries()
        assert [(e.key, e.size_bytes) for e in entries] == list(self.model.items())
        assert self.stores[1].sizes().size_bytes <= LIMIT
        assert not any("damaged" in sentence for sentence in self.said)

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)

    def _use(self, which: int, key: str, keep: bool) -> None:
        self.model.move_to_end(key)
        if keep:
            self.pinned[which].add(key)
        else:
            self.stores[which].release(key)
            self.pinned[which].discard(key)


TestUsed = Used.TestCase
TestUsed.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_an_entry_above_the_limit_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with Store(tmp_path, 100, said.append) as store:
        store.put(KEYS[0], b"x" * 60)
        store.release(KEYS[0])
        assert store.put(KEYS[1], b"x" * 101) is None
        assert store.document(KEYS[0]) == b"x" * 60
    assert said == [
        "cache not written: 101 B do not fit beside what is in use below the limit of 100 B"
    ]


def test_what_a_run_uses_is_not_evicted_by_another(tmp_path: Path) -> None:
    with Store(tmp_path, 100) as one, Store(tmp_path, 100) as two:
        entry = one.put(KEYS[0], b"x" * 60)
        assert entry is not None
        assert two.put(KEYS[1], b"x" * 60) is None
        assert (entry.path / "document").read_bytes() == b"x" * 60
        assert two.clear() == (0, 0, 1, 0)
        one.release(KEYS[0])
        assert two.put(KEYS[1], b"x" * 60) is not None
        assert one.get(KEYS[0]) is None


@pytest.mark.parametrize("unreadable", [b"", b"{", b'{"index": {}}'])
def test_unreadable_entries_make_room_first(tmp_path: Path, unreadable: bytes) -> None:
    with Store(tmp_path, 100) as store:
        store.put(KEYS[0], b"x" * 60)
        store.put(KEYS[1], b"x" * 30)
        store.close()
        (tmp_path / "v1" / "entries" / KEYS[1] / "entry.json").write_bytes(unreadable)
        store.put(KEYS[2], b"x" * 40)
        assert sorted(p.name for p in (tmp_path / "v1" / "entries").iterdir()) == sorted(
            [KEYS[0], KEYS[2]]
        )
