"""Writes to a store and is killed at every step of it: a script, so that forks meet no threads.

``python victim.py FOLDER`` prints one JSON line: how many places it was killed at, and complaints.
An audit hook counts what the interpreter asks of the system (open, rename, mkdir, remove, ...) and
ends the process by SIGKILL at the n-th, for n = 1, 2, ... until a run comes through.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from optimize.cache.entries import key_of
from optimize.cache.store import Store

LIMIT = 5000
OLD, NEW, LINKED = (key_of({"name": name}) for name in ("old", "new", "linked"))


def write(folder: Path, made: Path) -> None:
    """Put two entries, of which the second evicts an older one, and rebuild a damaged one."""
    with Store(folder, LIMIT) as store:
        with store.turns.building(NEW):
            store.put(NEW, b"n" * 3000, {"what": "new"})
        store.put(LINKED, made, link=True)
        store.release(NEW)
        store.drop(LINKED)
        store.clear()


def fork_and_kill(folder: Path, made: Path, step: int) -> bool:
    """Whether the child was killed, and did not come through."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, _: object) -> None:
            nonlocal seen
            seen += event.split(".")[0] in ("open", "os", "shutil", "tempfile", "fcntl", "pathlib")
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        write(folder, made)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def complaints(folder: Path) -> list[str]:
    """What is wrong with the store once it was opened again."""
    said: list[str] = []
    with Store(folder, LIMIT, said.append) as store:
        for key, size in ((OLD, 4000), (NEW, 3000)):
            content = store.document(key)
            if content is not None and len(content) != size:
                said.append(f"{key} holds {len(content)} bytes")
        linked = store.get(LINKED)
        if linked and (linked.path / "a" / "model.onnx").read_bytes() != b"l" * 1000:
            said.append("the linked file differs")
        places = {path.name for path in (folder / "v1" / "entries").iterdir()}
        if places != {entry.key for entry in store.entries()}:
            said.append(f"left in entries: {places}")
        if store.sizes().size_bytes > LIMIT:
            said.append(f"above the limit: {store.sizes()}")
    for name in ("work", "locks"):
        if left := list((folder / "v1" / name).glob("*")):
            said.append(f"left in {name}: {left}")
    return said


def main(root: Path) -> None:
    """Kill at every step."""
    made = root / "made"
    (made / "a").mkdir(parents=True)
    (made / "a" / "model.onnx").write_bytes(b"l" * 1000)
    step, found = 0, []
    killed = True
    while killed:
        step += 1
        folder = Path(tempfile.mkdtemp(dir=root))
        with Store(folder, LIMIT) as store:
            store.put(OLD, b"o" * 4000)
        killed = fork_and_kill(folder, made, step)
        found += [f"step {step}: {text}" for text in complaints(folder)]
    print(json.dumps({"steps": step - 1, "complaints": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
