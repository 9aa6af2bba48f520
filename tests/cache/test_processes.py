"""Several processes on one store: who builds, who waits, who dies, and what stays behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optimize.cache.entries import key_of
from optimize.cache.store import Store
from optimize.cache.turns import Stopped

KEY = key_of({"chain": "fold"})
VICTIM = Path(__file__).with_name("victim.py")

BUILD = """
import os, sys, time
from pathlib import Path
from optimize.cache.store import Store
from optimize.cache.turns import Stopped
folder, log, key = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with Store(folder) as store:
    print("open", flush=True)
    sys.stdin.readline()
    with store.turns.building(key):
        found = store.document(key)
        if found is None:
            with open(log, "a") as file:
                file.write("built\\n")
            time.sleep(0.3)  # long enough that all the others arrive meanwhile
            store.put(key, b"artefact")
            found = b"artefact"
print(found.decode(), flush=True)
"""

HOLD = """
import sys, time
from pathlib import Path
from optimize.cache.store import Store
from optimize.cache.turns import Stopped
store = Store(Path(sys.argv[1]))
with store.turns.building(sys.argv[2]), store._staging() as staging:
    (staging / "half").write_text("half written")
    print(staging, flush=True)
    time.sleep(600)
"""


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_eight_processes_one_builds_and_all_find(tmp_path: Path) -> None:
    log = tmp_path / "log"
    crowd = [start(BUILD, tmp_path / "cache", log, KEY) for _ in range(8)]
    for process in crowd:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in crowd]
    assert answers == ["artefact\n"] * 8
    assert log.read_text() == "built\n"
    assert list((tmp_path / "cache" / "v1" / "locks").iterdir()) == []


def test_keys_are_locked_one_by_one(store: Store) -> None:
    with store.turns.building(KEY), store.turns.building(key_of({"chain": "other"})):
        pass  # nobody waits


def test_a_dead_builder_is_not_waited_for_and_its_leavings_go(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path, KEY)
    assert holder.stdout is not None
    staging = Path(holder.stdout.readline().strip())
    said: list[str] = []
    with Store(tmp_path, report=said.append):  # its owner lives: nothing is cleared away
        assert (staging / "half").read_text() == "half written"
        assert (tmp_path / "v1" / "locks" / KEY).exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Store(tmp_path, report=said.append) as store:
        assert not staging.parent.exists()
        with store.turns.building(KEY):
            assert store.get(KEY) is None
    assert list((tmp_path / "v1" / "locks").iterdir()) == []
    assert said == []


def test_a_wait_is_said(tmp_path: Path) -> None:
    code = BUILD.replace(
        "Store(folder)", "Store(folder, report=lambda text: print(text, flush=True))"
    )
    with Store(tmp_path / "cache") as store, store.turns.building(KEY):
        waiting = start(code, tmp_path / "cache", tmp_path / "log", KEY)
        assert waiting.stdin is not None
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "open\n"
        waiting.stdin.write("\n")
        waiting.stdin.flush()
        assert waiting.stdout.readline() == f"{KEY[:12]} is being built already; waiting for it\n"
        store.put(KEY, b"found")
    assert waiting.communicate(timeout=60)[0] == "found\n"


def test_a_run_that_ends_does_not_wait_for_another(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        Store(tmp_path) as other,
        other.turns.building(KEY),
        Store(tmp_path, report=said.append) as store,
    ):
        with store.turns.building(KEY, deadline=time.monotonic()):
            pass  # it goes ahead without
        assert said == [f"{KEY[:12]} is being built already; waiting for it"]
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(lambda: store.turns.building(KEY).__enter__())
            assert not waiting.done()
            store.turns.stop()
            with pytest.raises(Stopped):
                waiting.result(60)
        with pytest.raises(Stopped), store.turns.turn(shared=True), store.turns.building(KEY):
            raise AssertionError("it was not free")


def test_killed_at_every_step_the_store_stays_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(VICTIM), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["complaints"] == []
    assert answer["steps"] > 50


def test_a_large_folder_does_not_pass_through_memory(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    with (made / "model.onnx").open("wb") as file:
        file.truncate(400 << 20)
    code = (
        "import resource, sys; from pathlib import Path; from optimize.cache.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert store.put(sys.argv[2], Path(sys.argv[3])) and store.get(sys.argv[2])\n"
        "print(peak() - before)"
    )
    process = start(code, tmp_path / "cache", KEY, made)
    grown_kb = int(process.communicate(timeout=60)[0])
    assert grown_kb < 20_000
    stored = tmp_path / "cache" / "v1" / "entries" / KEY / "files" / "model.onnx"
    assert stored.stat().st_size == 400 << 20


def test_threads_exclude_each_other_too(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    built: list[int] = []

    def build(number: int) -> bytes | None:
        with store.turns.building(KEY):
            if store.document(KEY) is None:
                built.append(number)
                store.put(KEY, b"artefact")
            return store.document(KEY)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(build, range(16))) == [b"artefact"] * 16
    assert len(built) == 1


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_NOFILE"), reason="no limit of open files here")
def test_too_many_open_files_cost_no_entry(store: Store, said: list[str]) -> None:
    store.put(KEY, b"kept")
    store.release(KEY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert store.get(KEY) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.document(KEY) == b"kept"
    assert "Too many open files" in said[0]
