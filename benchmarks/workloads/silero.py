"""Silero's voice-activity detector (ONNX with carried state, TorchScript) over synthetic speech.

Writes OUT/silero/: silero_vad.onnx, silero_vad_16k_op15.onnx, silero_vad.jit, core.jit (the
stateless 16 kHz part of silero_vad.jit), data.npz (ONNX: input, state, sr), data_core.npz
(core.jit: input, state), data_jit.npz (silero_vad.jit: x, sr), stream.py:core and
stream.py:whole (generators of the same complete samples, for TorchScript does not tell the
ranks of its inputs) and metric.py:speech. The labels say whether a chunk holds speech, known
from how the audio was made; the states are those the float model itself carries from chunk to
chunk. silero_vad.jit carries its state within: its chunks only make sense in their order.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads.common import noun_glosses, output_folder, write_text
from benchmarks.workloads.fetch import debian, wheel

PACKAGE = "silero_vad==6.2.3"
RATE, CHUNK, CONTEXT = 16_000, 512, 64
VOICES = ("slt", "rms", "awb", "kal16")
UTTERANCES = 12

METRIC = '''"""Accuracy of telling speech from no speech; higher is better."""

import numpy as np


def speech(outputs, labels):
    """Compare the probability of speech with the label, 0 or 1, chunk by chunk."""
    if isinstance(outputs, dict):
        outputs = outputs.get("output", next(iter(outputs.values())))
    probability = np.asarray(outputs).reshape(-1)
    return float(((probability > 0.5) == np.asarray(labels).reshape(-1).astype(bool)).mean())
'''

STREAM = '''"""The chunks as complete samples for the TorchScript files."""

from pathlib import Path

import numpy as np

NAMES = {"input": "x"}  # the ONNX file's name, the script's name


def _samples(name, cut):
    """Yield (inputs, label) from one of the data files beside this one."""
    with np.load(Path(__file__).with_name(name)) as stored:
        arrays = {key: stored[key] for key in stored.files}
    labels = arrays.pop("labels")
    for index, label in enumerate(labels):
        named = {NAMES.get(key, key): np.asarray(cut(a, index)) for key, a in arrays.items()}
        yield named, label


def core():
    """Yield x [1, 576] and state [2, 1, 128] for core.jit."""
    return _samples("data_core.npz", lambda array, index: array[index])


def whole():
    """Yield x [1, 512] and the scalar sr for silero_vad.jit, in the order of time."""
    return _samples(
        "data_jit.npz",
        lambda array, index: array[index : index + 1] if array.ndim == 2 else array[index],
    )
'''


def speak(text: str, voice: str) -> np.ndarray:
    """Return text as 16 kHz speech in [-1, 1], by the flite synthesizer."""
    packages = [debian("flite"), debian("libflite1"), debian("libasound2", "libasound2t64")]
    libraries = [str(path) for package in packages for path in package.glob("usr/lib/*/")]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    program = packages[0] / "usr" / "bin" / f"flite_cmu_us_{voice}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "speech.wav"
        subprocess.run([program, "-t", text, "-o", target], env=environment, check=True)
        with wave.open(str(target)) as sound:
            raw = sound.readframes(sound.getnframes())
    return np.frombuffer(raw, dtype=np.int16).astype(np.float32) / 32768


def audio() -> tuple[np.ndarray, np.ndarray]:
    """Return utterances apart by pauses as clean sound, and the same in varying noise."""
    rng = np.random.default_rng(0)
    clean, noisy = [], []
    for index, (_, text) in enumerate(noun_glosses()[:UTTERANCES]):
        voice = speak(text, VOICES[index % len(VOICES)])
        pauses = [np.zeros(int(rng.uniform(0.3, 1.5) * RATE), np.float32) for _ in "ab"]
        sound = np.concatenate([pauses[0], voice, pauses[1]])
        sound *= rng.uniform(0.05, 0.3) / np.abs(sound).max()
        level = voice.std() / np.abs(voice).max() * np.abs(sound).max()
        noise = rng.normal(size=len(sound)) * level * 10 ** (-rng.uniform(5, 40) / 20)
        clean.append(sound)
        noisy.append((sound + noise).astype(np.float32))
    return np.concatenate(clean), np.concatenate(noisy)


def chunk_labels(clean: np.ndarray) -> np.ndarray:
    """Return 1 for each chunk louder than -40 dB of the loudest within half a second, else 0.

    Pauses shorter than a quarter of a second within an utterance count as speech.
    """
    from scipy.ndimage import binary_closing, maximum_filter1d

    chunks = clean[: len(clean) // CHUNK * CHUNK].reshape(-1, CHUNK)
    loud = np.sqrt((chunks**2).mean(axis=1))
    peak = maximum_filter1d(loud, size=31)
    active = loud > np.maximum(0.01 * peak, 1e-5)
    closed: np.ndarray = binary_closing(active, np.ones(9)).astype(np.int64)
    return closed


def carried_states(model: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the state before each chunk, by running the ONNX model over all of them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    state = np.zeros((2, 1, 128), dtype=np.float32)
    states = []
    for chunk in inputs:
        states.append(state)
        feed = {"input": chunk, "state": state, "sr": np.array(RATE, dtype=np.int64)}
        _, state = session.run(None, feed)
    return np.stack(states)


def write_data(folder: Path) -> None:
    """Write the three data files: for the ONNX files, the core, and the whole TorchScript."""
    clean, noisy = audio()
    labels = chunk_labels(clean)
    chunks = noisy[: len(labels) * CHUNK].reshape(-1, CHUNK)
    context = np.zeros((len(chunks), CONTEXT), dtype=np.float32)
    context[1:] = chunks[:-1, -CONTEXT:]
    inputs = np.concatenate([context, chunks], axis=1)[:, None, :]
    states = carried_states(folder / "silero_vad.onnx", inputs)
    rates = np.full(len(labels), RATE, dtype=np.int64)
    core: dict[str, Any] = {"input": inputs, "state": states, "labels": labels}
    np.savez_compressed(folder / "data.npz", sr=rates, **core)
    np.savez_compressed(folder / "data_core.npz", **core)
    np.savez_compressed(folder / "data_jit.npz", x=chunks, sr=rates, labels=labels)


def main() -> None:
    """Prepare OUT/silero."""
    folder = output_folder("silero", __doc__)
    package = wheel(PACKAGE) / "silero_vad" / "data"
    for name in ("silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad.jit"):
        shutil.copyfile(package / name, folder / name)
    whole = torch.jit.load(folder / "silero_vad.jit").eval()  # type: ignore[no-untyped-call]
    torch.jit.save(whole._model, folder / "core.jit")
    write_data(folder)
    write_text(folder / "metric.py", METRIC)
    write_text(folder / "stream.py", STREAM)
    print(folder)


if __name__ == "__main__":
    main()
