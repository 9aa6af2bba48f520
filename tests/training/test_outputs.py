"""What modules return, and how far outputs are apart, against numpy and scipy in double precision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from optimize.errors import InputError
from optimize.passes.training.outputs import distance, kind_of, label_loss, named_outputs

torch = pytest.importorskip("torch")

seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal(shape)


def loss(student: Any, teacher: Any, *args: Any, **options: Any) -> float:
    return float(distance(torch.from_numpy(student), torch.from_numpy(teacher), *args, **options))


class TestNames:
    def test_tensor_tuple_dict_and_nests(self) -> None:
        a, b = torch.zeros(1), torch.ones(2)
        assert named_outputs(a) == {"output": a}
        assert list(named_outputs((a, b))) == ["output_0", "output_1"]
        assert list(named_outputs((a,))) == ["output"]
        assert list(named_outputs({"x": a, "y": [a, b], "z": None})) == ["x", "y.0", "y.1"]

    def test_model_output(self) -> None:
        outputs = pytest.importorskip("transformers.modeling_outputs")
        result = outputs.BaseModelOutput(last_hidden_state=torch.zeros(1, 2, 3))
        assert list(named_outputs(result)) == ["last_hidden_state"]
        assert list(named_outputs(OrderedDict(logits=torch.zeros(1)))) == ["logits"]


class TestKinds:
    def test_by_values_names_and_labels(self) -> None:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 3
        assert kind_of("output", torch.softmax(x, 1)) == "probabilities"
        assert kind_of("output", torch.sigmoid(x)) == "independent"
        assert kind_of("logits", x) == "logits"
        assert kind_of("output", x) == "values"
        assert kind_of("output", x, torch.arange(8) % 4) == "logits"
        assert kind_of("output", x, torch.arange(8)) == "values"  # more labels than columns
        assert kind_of("output", x, torch.rand(8)) == "values"
        assert kind_of("hidden", torch.randn(2, 5, 16)) == "values"


class TestDistances:
    @settings(max_examples=25, deadline=None)
    @given(seed=seeds, temperature=st.floats(0.5, 8))
    def test_softened_classes(self, seed: int, temperature: float) -> None:
        student, teacher = draw(seed, 6, 5)
        p = softmax(teacher / temperature, 1)
        q = softmax(student / temperature, 1)
        want = rel_entr(p, q).sum(1).mean() * temperature**2
        assert loss(student, teacher, "logits", temperature) == pytest.approx(want, rel=1e-6)
        pairs = softmax(student, 1), softmax(teacher, 1)
        assert loss(*pairs, "probabilities", temperature) == pytest.approx(want, rel=1e-4)

    @settings(max_examples=25, deadline=None)
    @given(seed=seeds)
    def test_independent_probabilities(self, seed: int) -> None:
        student, teacher = (1 / (1 + np.exp(-x)) for x in draw(seed, 6, 5))
        want = rel_entr(teacher, student) + rel_entr(1 - teacher, 1 - student)
        assert loss(student, teacher, "independent") == pytest.approx(want.mean(), rel=1e-5)

    @settings(max_examples=25, deadline=None)
    @given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e3]))
    def test_values_are_relative_to_the_variance(self, seed: int, scale: float) -> None:
        student, teacher = draw(seed, 6, 5)
        want = ((student - teacher) ** 2).mean() / teacher.var()
        assert loss(scale * student, scale * teacher, "values") == pytest.approx(want, rel=1e-6)

    def test_padding_does_not_count(self) -> None:
        student, teacher = draw(3, 2, 4, 5)
        mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
        real = np.array(mask, bool)
        want = ((student[real] - teacher[real]) ** 2).mean() / teacher[real].var()
        assert loss(student, teacher, "values", mask=mask) == pytest.approx(want, rel=1e-6)
        teacher[~real] = 1e6
        assert loss(student, teacher, "values", mask=mask) == pytest.approx(want, rel=1e-6)

    def test_cosine(self) -> None:
        student, teacher = draw(4, 6, 5)
        norms = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
        want = 1 - ((student * teacher).sum(1) / norms).mean()
        assert loss(student, teacher, "values", values="cosine") == pytest.approx(want, rel=1e-6)

    @pytest.mark.parametrize("kind", ["logits", "probabilities", "independent", "values"])
    def test_nothing_apart_is_zero(self, kind: Any) -> None:
        x = softmax(draw(5, 6, 5)[0], 1)
        assert loss(x, x, kind) == pytest.approx(0, abs=1e-12)


class TestLabels:
    def test_cross_entropy(self) -> None:
        scores, _ = draw(6, 7, 4)
        labels = np.arange(7) % 4
        want = -log_softmax(scores, 1)[np.arange(7), labels].mean()
        value, target = torch.from_numpy(scores), torch.from_numpy(labels)
        assert float(label_loss(value, target, "logits")) == pytest.approx(want)
        chances = torch.softmax(value, 1)
        assert float(label_loss(chances, target, "probabilities")) == pytest.approx(want)

    def test_labels_that_are_no_classes(self) -> None:
        with pytest.raises(InputError, match="classes of the output"):
            label_loss(torch.zeros(3, 2), torch.tensor([0, 1, 5]), "logits")
