"""Hugging Face folders: a tiny BERT against transformers' own outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.errors import InputError
from optimize.models.data import Dataset
from optimize.models.export import Exported, load_and_export
from optimize.models.source import detect, load
from optimize.passes.base import PassResult

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def sample(batch: int, length: int, seed: int) -> dict[str, Any]:
    """Ids whose second half is padding in every other sequence."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[::2, length // 2 :] = 0
    ids = rng.integers(0, 50, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    folder = tmp_path_factory.mktemp("hf") / "bert"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def data() -> Dataset:
    samples = [sample(1, length, length) for length in (6, 8, 12)]
    return Dataset("texts", {name: [s[name] for s in samples] for name in INPUTS}, batch_first=True)


@pytest.fixture(scope="module")
def exported(
    bert: tuple[Any, Path], data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    return load_and_export(detect(bert[1]), None, False, data, (), folder)


@pytest.fixture(scope="module")
def close_to_torch(bert: tuple[Any, Path]) -> Callable[[Path, int, int], None]:
    def check(path: Path, batch: int, length: int) -> None:
        given = sample(batch, length, 99)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        got = dict(zip(names, session.run(None, given), strict=True))
        with torch.no_grad():
            want = bert[0](**{name: torch.from_numpy(array) for name, array in given.items()})
        for name in ("last_hidden_state", "pooler_output"):
            np.testing.assert_allclose(got[name], want[name].numpy(), rtol=1e-3, atol=1e-4)

    return check


def test_the_folder_is_told_by_its_content(bert: tuple[Any, Path]) -> None:
    source = detect(bert[1])
    weights = (bert[1] / "model.safetensors").stat().st_size
    assert source.kind == "huggingface"
    assert source.size_bytes == weights + (bert[1] / "config.json").stat().st_size
    assert load(source, None, False).inputs == INPUTS


@pytest.mark.parametrize(("batch", "length"), [(1, 6), (1, 20), (4, 10)])
def test_outputs_equal_transformers_with_padding_at_any_batch_and_length(
    batch: int, length: int, exported: Exported, close_to_torch: Callable[[Path, int, int], None]
) -> None:
    close_to_torch(exported.model.path, batch, length)


def test_inputs_keep_their_names(exported: Exported) -> None:
    assert tuple(spec.name for spec in exported.model.signature.inputs) == INPUTS
    assert exported.difference.relative <= 1e-5


@pytest.mark.parametrize("text", ["fuse", "fold,fuse", "fuse{engine=onnxscript}"])
def test_attention_is_fused_exactly_with_padding(
    text: str,
    exported: Exported,
    data: Dataset,
    apply: Callable[..., PassResult],
    close_to_torch: Callable[[Path, int, int], None],
) -> None:
    result = apply(text, exported.model, data)
    assert result.model.count("com.microsoft::Attention") == 2
    assert "Attention x2" in result.notes[0]
    assert "Gelu" in result.notes[0]
    assert result.difference is not None
    close_to_torch(result.model.path, 3, 10)


def test_an_engine_that_fuses_no_attention_says_so(
    exported: Exported,
    data: Dataset,
    apply: Callable[..., PassResult],
    close_to_torch: Callable[[Path, int, int], None],
) -> None:
    result = apply("fuse{engine=onnxruntime}", exported.model, data)
    fused = result.model.count("com.microsoft::Attention")
    assert ("no attention matched" in result.notes) == (fused == 0)
    assert "SkipLayerNormalization" in result.notes[0]
    close_to_torch(result.model.path, 3, 10)


@pytest.mark.parametrize(
    "text", ["fold,int8{mode=dynamic}", "fold,fuse,int8{mode=dynamic}",
             "fold,int8{mode=static,ops=matmul}"],
)  # fmt: skip
def test_quantized_hidden_states_stay_similar(
    text: str,
    bert: tuple[Any, Path],
    exported: Exported,
    data: Dataset,
    apply: Callable[..., PassResult],
    cosine: Callable[..., float],
) -> None:
    result = apply(text, exported.model, data)
    assert result.model.quantized
    given = sample(2, 10, 7)
    session = onnxruntime.InferenceSession(
        str(result.model.path), providers=["CPUExecutionProvider"]
    )
    (hidden,) = session.run(["last_hidden_state"], given)
    with torch.no_grad():
        want = bert[0](**{name: torch.from_numpy(array) for name, array in given.items()})
    assert cosine(hidden, want["last_hidden_state"].numpy()) > 0.97


def test_weights_that_are_cut_short_are_refused(bert: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(bert[1], tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(detect(tmp_path / "bert"), None, False)


def test_a_damaged_configuration_is_refused(bert: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(bert[1], tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ')
    with pytest.raises(InputError, match="cannot be loaded"):
        load(detect(tmp_path / "bert"), None, False)


def test_code_in_the_folder_is_never_run(bert: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(bert[1], tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["Evil"]}
    config["model_type"] = "evil"
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    (tmp_path / "bert" / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    )
    with pytest.raises(InputError, match="cannot be loaded"):
        load(detect(tmp_path / "bert"), None, False)
    assert not (tmp_path / "ran").exists()
