"""What was measured is found again: whole, by all that it depends on, and not when fresh is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimize.budgets.profile import Block, Profile
from optimize.cache.records import Records, function_parts
from optimize.cache.store import Store

PARTS = {"latency": {"artefact": "a" * 64, "threads": 1}}
SLOW = 3_000_000_000  # a call that is worth keeping at once


def block(*samples: int, process: int = 0, note: str | None = None) -> Block:
    array = np.array(samples, np.int64)
    return Block(array, process, 1_700_000_000_000_000_000 + process, note, {"compute": array // 2})


def plain(profile: Profile) -> list[Any]:
    return [
        (b.samples_ns.tolist(), b.process, b.started_ns, b.disturbance, b.parts_ns["compute"].sum())
        for b in profile.blocks
    ]


blocks = st.lists(
    st.builds(
        lambda samples, process, note: block(*samples, process=process, note=note),
        st.lists(st.integers(1, 2**62), min_size=1, max_size=5),
        st.integers(0, 9),
        st.none() | st.text(max_size=20),
    ),
    max_size=6,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=blocks, second=blocks, peak=st.none() | st.integers(0, 2**40))
def test_a_profile_comes_back_as_it_was_kept_in_pieces(
    first: list[Block], second: list[Block], peak: int | None, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with Store(folder) as store:
        records = Records(store, {"device": "d"})
        profile = Profile(tuple(first), load_ns=7, warmup_calls=3, steady=False, peak_bytes=peak)
        records.keep_profile(PARTS, profile, "v", last=True)
        whole = Profile((*first, *second), load_ns=7, warmup_calls=3, steady=False, peak_bytes=peak)
        records.keep_profile(PARTS, whole, "v", last=True)
    with Store(folder) as store:
        found = Records(store, {"device": "d"}).recall_profile(PARTS)
    assert plain(found) == plain(whole)
    if whole.blocks:
        told = (found.load_ns, found.warmup_calls, found.steady, found.peak_bytes)
        assert told == (7, 3, False, peak)


def test_a_later_run_goes_on_where_the_earlier_one_was(tmp_path: Path) -> None:
    for number in range(3):
        with Store(tmp_path) as store:
            records = Records(store, {})
            before = records.recall_profile(PARTS)
            assert len(before.blocks) == number
            more = Profile((*before.blocks, block(SLOW, process=number)))
            records.keep_profile(PARTS, more, "v")


def test_little_is_kept_only_at_the_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        records = Records(store, {})
        records.keep_profile(PARTS, Profile((block(5),)), "v")
        assert not store.entries()
        records.keep_profile(PARTS, Profile((block(5),)), "v", last=True)
        assert len(store.entries()) == 1


def test_two_runs_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    with Store(tmp_path) as one, Store(tmp_path) as two:
        first, second = Records(one, {}), Records(two, {})
        for records in (first, second):
            records.recall_profile(PARTS)
        first.keep_profile(PARTS, Profile((block(SLOW, process=1),)), "v")
        second.keep_profile(PARTS, Profile((block(SLOW, process=2),)), "v")
        found = Records(one, {}).recall_profile(PARTS)
    assert [b.process for b in found.blocks] == [1, 2]


@pytest.mark.parametrize(
    ("common", "parts"),
    [
        ({"device": "other"}, PARTS),
        ({"device": "d"}, {"latency": {"artefact": "b" * 64, "threads": 1}}),
        ({"device": "d"}, {"latency": {"artefact": "a" * 64, "threads": 2}}),
    ],
)
def test_another_device_artefact_or_setting_knows_nothing(
    common: dict[str, Any], parts: dict[str, Any], tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        Records(store, {"device": "d"}).keep(PARTS, {"value": 0.5}, "v")
        assert Records(store, {"device": "d"}).recall(PARTS) == {"value": 0.5}
        assert Records(store, common).recall(parts) is None


def test_fresh_records_forget_and_learn_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        Records(store, {}).keep(PARTS, 1, "v")
        fresh = Records(store, {}, fresh=True)
        assert fresh.recall(PARTS) is None
        fresh.keep(PARTS, 2, "v")
        assert fresh.recall(PARTS) == 2
    with Store(tmp_path) as store:
        assert Records(store, {}).recall(PARTS) == 2


def test_fresh_records_keep_over_what_they_did_not_ask_for(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        Records(store, {}).keep(PARTS, 1, "v")
        fresh = Records(store, {}, fresh=True)
        fresh.keep(PARTS, 2, "v")
        assert fresh.recall(PARTS) == 2
        assert Records(store, {}).recall(PARTS) == 2


def timed(*processes: int) -> Profile:
    return Profile(tuple(block(SLOW, process=process) for process in processes))


def three_segments(store: Store) -> Records:
    """One profile that three runs timed, each going on; the records of the last."""
    for profile in (timed(1), timed(1, 2), timed(1, 2, 3)):
        records = Records(store, {})
        records.recall_profile(PARTS)
        records.keep_profile(PARTS, profile, "v")
    return records


def test_fresh_records_forget_a_profile_to_its_last_segment(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        three_segments(store)
        fresh = Records(store, {}, fresh=True)
        assert not fresh.recall_profile(PARTS).blocks
        fresh.keep_profile(PARTS, timed(7), "v")
        fresh.keep_profile(PARTS, timed(7, 8), "v")
        assert [b.process for b in fresh.recall_profile(PARTS).blocks] == [7, 8]
    with Store(tmp_path) as store:
        assert [b.process for b in Records(store, {}).recall_profile(PARTS).blocks] == [7, 8]


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("fresh", [True, False])
def test_segments_that_outlive_their_first_do_not_come_back(
    gone: int, fresh: bool, tmp_path: Path
) -> None:
    """Eviction takes the least recently used one of them."""

    with Store(tmp_path) as store:
        records = three_segments(store)
        store.drop(records._key({**PARTS, "segment": gone}))
        later = Records(store, {}, fresh=fresh)
        before = later.recall_profile(PARTS)
        assert [b.process for b in before.blocks] == ([] if fresh or gone == 0 else [1])
        later.keep_profile(PARTS, Profile((*before.blocks, block(SLOW, process=7))), "v")
        found = [b.process for b in Records(store, {}).recall_profile(PARTS).blocks]
    assert found == ([7] if fresh or gone == 0 else [1, 7, 3])


def test_records_that_keep_nothing_leave_what_is_there(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        Records(store, {}).keep(PARTS, 1, "v")
        silent = Records(store, {}, keeps=False)
        assert silent.recall(PARTS) is None
        silent.keep(PARTS, 2, "v")
        silent.keep_profile(PARTS, Profile((block(SLOW),)), "v", last=True)
        assert not silent.recall_profile(PARTS).blocks
        assert Records(store, {}).recall(PARTS) == 1
        assert len(store.entries()) == 1


def test_without_a_store_nothing_is_known_and_nothing_fails() -> None:
    records = Records(None, {})
    records.keep(PARTS, 1, "v")
    records.keep_profile(PARTS, Profile((block(SLOW),)), "v", last=True)
    assert records.recall(PARTS) is None
    assert not records.recall_profile(PARTS).blocks
    with records.alone(None), records.busy(None):
        pass


def test_a_metric_is_another_once_its_file_or_what_lies_beside_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text("def score(outputs, labels): return 1.0\n")
    seen = [function_parts(f"{file}:score")]
    (tmp_path / "probe.npz").write_bytes(b"weights")
    seen.append(function_parts(f"{file}:score"))
    (tmp_path / "probe.npz").write_bytes(b"other weights")
    seen.append(function_parts(f"{file}:score"))
    file.write_text("def score(outputs, labels): return 0.0\n")
    seen.append(function_parts(f"{file}:score"))
    (tmp_path / "run.log").write_text("a log changes nothing")
    assert function_parts(f"{file}:score") == seen[-1]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
