"""Single timings come back from their file as they were measured."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import HOSTILE, profile

from optimize.budgets.profile import Block, Profile
from optimize.errors import InputError
from optimize.reports.samples import MOST_CALLS, pack, read, unpack


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    sizes = draw(st.lists(st.integers(1, 5), max_size=6))
    return Profile(
        tuple(
            Block(
                np.array(draw(st.lists(st.integers(1, 10**12), min_size=n, max_size=n)), np.int64),
                draw(st.integers(0, 3)),
                draw(st.integers(0, 10**15)),
                draw(st.sampled_from([None, "stalled", "—"])),
            )
            for n in sizes
        )
    )


@settings(deadline=None)
@given(st.dictionaries(st.text("ab<>{}/\\é ", min_size=1, max_size=8), profiles(), max_size=4))
def test_what_is_stored_is_read_back(measured: dict[str, Profile]) -> None:
    measured = {name.rstrip("\0"): made for name, made in measured.items()}
    found = unpack(pack(measured))
    assert set(found) == {name for name, made in measured.items() if made.blocks}
    begun = min((b.started_ns for made in measured.values() for b in made.blocks), default=0)
    for name, timings in found.items():
        blocks = measured[name].blocks
        assert timings.ns.tolist() == measured[name].samples_ns.tolist()
        assert timings.total == timings.ns.size
        place = 0
        for number, block in enumerate(blocks):
            at = block.started_ns - begun
            for ns in block.samples_ns.tolist():
                assert timings.at_s[place] == pytest.approx(at / 1e9, abs=1e-3)
                assert timings.block[place] == number
                assert timings.process[place] == block.process
                assert timings.disturbed[place] == (block.disturbance is not None)
                at, place = at + ns, place + 1


def test_names_of_any_kind_are_kept() -> None:
    assert list(unpack(pack({HOSTILE: profile(1.0, 50)}))) == [HOSTILE]


def test_long_series_are_cut_to_whole_blocks_spread_over_the_run() -> None:
    blocks = tuple(
        Block(np.full(50, 1000 + n, np.int64), started_ns=n * 10**6) for n in range(2000)
    )
    packed = pack({"long": Profile(blocks)})
    assert len(packed) < 200_000
    timings = unpack(packed)["long"]
    assert timings.total == 100_000
    assert MOST_CALLS - 100 <= timings.ns.size <= MOST_CALLS
    kept = np.unique(timings.ns) - 1000
    assert (kept[0], kept[-1]) == (0, 1999)
    assert np.diff(kept).max() <= 6
    assert all(np.count_nonzero(timings.ns == 1000 + n) == 50 for n in kept[:20])


def test_a_missing_file_is_no_samples_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    assert read(file) == {}
    whole = pack({"source": profile(1.0, 100)})
    stream = io.BytesIO()
    np.savez(stream, chains=np.array(["a"], dtype=object))
    for content in (b"", b"no archive", whole[: len(whole) // 2], stream.getvalue()):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"samples\.npz is damaged"):
            read(file)
