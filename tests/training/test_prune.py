"""Structured pruning: shapes shrink, outputs stay, and what contributes nothing goes first."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.passes.training.batches import Batches
from optimize.passes.training.prune import prune_module, rounded

torch = pytest.importorskip("torch")
nn = torch.nn

IMAGES = (torch.zeros(2, 1, 28, 28, dtype=torch.uint8),)


def widths(module: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in module.named_parameters() if p.ndim > 1}


def images(data: Dataset, count: int = 16) -> Any:
    return torch.from_numpy(np.concatenate(data.inputs["image"][:count]))


class TestFashion:
    def test_ratio_zero_is_exact(self, fashion: Any, fashion_data: Dataset) -> None:
        pruned, notes = prune_module(fashion, IMAGES, 0.0)
        x = images(fashion_data)
        assert torch.equal(pruned(x), fashion(x))
        assert "ratio 0" in notes[0]

    def test_half_of_the_channels_go_and_onnx_agrees_with_torch(
        self, fashion: Any, fashion_data: Dataset, through_onnx: Any
    ) -> None:
        before = copy.deepcopy(fashion.state_dict())
        pruned, notes = prune_module(fashion, IMAGES, 0.5, multiple=8)
        found = widths(pruned)
        assert found["stem.0.weight"] == (8, 1, 3, 3)
        assert found["blocks.0.conv2.weight"] == (16, 16, 3, 3)
        assert found["fc.weight"] == (10, 32)
        assert any("kept fc: it makes an output" in note for note in notes)
        x = images(fashion_data)
        np.testing.assert_allclose(through_onnx(pruned, x), pruned(x).detach(), atol=2e-4)
        # The source is as it was.
        assert all(torch.equal(v, before[k]) for k, v in fashion.state_dict().items())

    def test_widths_are_multiples(self, fashion: Any) -> None:
        pruned, _ = prune_module(fashion, IMAGES, 0.4, multiple=16)
        convolutions = [s for n, s in widths(pruned).items() if len(s) == 4]
        assert all(shape[0] % 16 == 0 for shape in convolutions)

    def test_global_scope_takes_the_share_of_the_total(self, fashion: Any) -> None:
        layer, _ = prune_module(fashion, IMAGES, 0.5, scope="layer", multiple=1)
        over_all, _ = prune_module(fashion, IMAGES, 0.5, scope="global", multiple=1)
        assert widths(layer) != widths(over_all)
        counts = [
            sum(len(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d))
            for net in (layer, over_all)
        ]
        assert counts[1] == pytest.approx(counts[0], rel=0.25)

    def test_skipped_layers_keep_their_channels(self, fashion: Any) -> None:
        pruned, _ = prune_module(fashion, IMAGES, 0.5, multiple=8, skip=("stem.0",))
        assert widths(pruned)["stem.0.weight"] == (16, 1, 3, 3)
        assert widths(pruned)["blocks.0.conv1.weight"][0] == 16

        pruned, _ = prune_module(fashion, IMAGES, 0.5, multiple=8, skip=("blocks.3",))
        assert widths(pruned)["blocks.3.conv1.weight"][0] == 64
        with pytest.raises(InputError, match="no module 'stam'; did you mean stem"):
            prune_module(fashion, IMAGES, 0.5, skip=("stam",))

    def test_frozen_parameters_and_the_mode_stay(self, fashion: Any) -> None:
        fashion.stem[0].weight.requires_grad_(False)
        fashion.train()
        pruned, _ = prune_module(fashion, IMAGES, 0.5, multiple=8)
        assert pruned.training
        assert not pruned.stem[0].weight.requires_grad
        assert pruned.fc.weight.requires_grad


class Net(nn.Module):
    """A stem, a residual depthwise block, a concatenation, a classifier."""

    def __init__(self, width: int, inner: int, branch: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, inner, 1)
        self.expand_norm = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.project = nn.Conv2d(inner, width, 1)
        self.project_norm = nn.BatchNorm2d(width)
        self.branch = nn.Conv2d(width, branch, 3, padding=1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width + branch, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.expand_norm(self.expand(x)))
        x = x + self.project_norm(self.project(self.depthwise(y)))
        x = torch.cat([torch.relu(self.branch(x)), self.pool(x)], 1)
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def silence(net: Net, stream: list[int], inner: list[int], branch: list[int]) -> None:
    """Make channels that are zero wherever they appear."""
    with torch.no_grad():
        for layer in (net.stem, net.stem_norm, net.project, net.project_norm):
            layer.weight[stream] = 0
            layer.bias[stream] = 0
        for layer in (net.expand, net.expand_norm, net.depthwise):
            layer.weight[inner] = 0
            layer.bias[inner] = 0
        net.branch.weight[branch] = 0
        net.branch.bias[branch] = 0


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    width=st.integers(4, 12),
    inner=st.integers(4, 20),
    branch=st.integers(4, 9),
    ratio=st.sampled_from([0.25, 0.5]),
    seed=st.integers(0, 999),
)
def test_channels_that_are_zero_go_and_nothing_changes(
    width: int, inner: int, branch: int, ratio: float, seed: int
) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Net(width, inner, branch).eval()
    for norm in (net.stem_norm, net.expand_norm, net.project_norm):
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
        torch.nn.init.normal_(norm.bias)
    removed = {size: size - rounded(size, ratio, 1) for size in (width, inner, branch)}
    silence(net, *(rng.permutation(n)[: removed[n]].tolist() for n in (width, inner, branch)))
    x = torch.randn(2, 3, 8, 8)
    pruned, _ = prune_module(net, (x,), ratio, multiple=1)
    assert pruned.stem.out_channels == width - removed[width]
    assert pruned.depthwise.groups == inner - removed[inner]
    assert pruned.branch.out_channels == branch - removed[branch]
    torch.testing.assert_close(pruned(x), net(x), rtol=1e-4, atol=1e-5)


class SelfAttention(nn.Module):
    """BERT's attention, by the names that Hugging Face gives."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.attention_head_size = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        def split(y: Any) -> Any:
            return y.view(*x.shape[:2], -1, self.attention_head_size).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = torch.softmax(q @ k.transpose(2, 3) / self.attention_head_size**0.5, -1)
        return (weights @ v).transpose(1, 2).reshape(*x.shape[:2], -1)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Any) -> Any:
        x = self.norm1(x + self.output(self.attention(x)))
        return self.norm2(x + self.down(torch.nn.functional.gelu(self.up(x))))


class TestAttention:
    def test_silent_heads_and_hidden_units_go_and_nothing_changes(self, through_onnx: Any) -> None:
        torch.manual_seed(1)
        net = Layer(32, 4, 48).eval()
        with torch.no_grad():
            for layer in (net.attention.query, net.attention.key, net.attention.value):
                layer.weight[8:16] = 0  # the second head
                layer.bias[8:16] = 0
            net.output.weight[:, 8:16] = 0
            net.up.weight[:12] = 0
            net.up.bias[:12] = 0
        x = torch.randn(2, 5, 32)
        pruned, notes = prune_module(net, (x,), 0.25, multiple=1)
        assert pruned.attention.num_attention_heads == 3
        assert widths(pruned)["attention.query.weight"] == (24, 32)
        assert widths(pruned)["up.weight"] == (36, 32)
        torch.testing.assert_close(pruned(x), net(x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(through_onnx(pruned, x), net(x).detach(), atol=1e-4)
        assert "heads 4 -> 3 in 1 groups" in notes

    def test_heads_have_a_ratio_of_their_own(self) -> None:
        x = torch.randn(2, 5, 32)
        pruned, _ = prune_module(Layer(32, 4, 48), (x,), 0.0, heads=0.5)
        assert widths(pruned)["attention.query.weight"] == (16, 32)
        assert widths(pruned)["up.weight"] == (48, 32)

    def test_torchs_own_attention_is_left_alone_and_told(self) -> None:
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        pruned, notes = prune_module(layer, (torch.randn(2, 5, 32),), 0.25, multiple=4)
        assert widths(pruned)["linear1.weight"] == (48, 32)
        assert any("self_attn" in note and "MultiheadAttention" in note for note in notes)

    def test_hugging_face_bert(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
        net = transformers.BertModel(config, add_pooling_layer=False).eval()
        ids = torch.randint(0, 50, (2, 7))
        pruned, notes = prune_module(net, (ids, torch.ones_like(ids)), 0.5, multiple=8)
        attention = pruned.encoder.layer[1].attention.self
        assert attention.query.out_features == 16
        assert pruned.encoder.layer[0].intermediate.dense.out_features == 32
        assert pruned(ids).last_hidden_state.shape == (2, 7, 32)
        assert any("it makes an output" in note for note in notes)


class Reshaping(nn.Module):
    """Code that knows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.last(self.second(torch.relu(self.first(x))).view(-1, 16))


class Flattening(nn.Module):
    """A concatenation that is flattened with its pixels, which Torch-Pruning misreads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x))
        return self.head(torch.cat([self.left(x), self.right(x)], 1).flatten(1))


class TestLimits:
    def test_what_torch_pruning_misreads_is_kept_and_told(self) -> None:
        pruned, notes = prune_module(Flattening(), (torch.randn(2, 3, 4, 4),), 0.5, multiple=1)
        assert pruned.first.out_channels == 4
        assert pruned.left.out_channels == pruned.right.out_channels == 4
        assert any(note.startswith(("kept right", "kept left")) for note in notes)

    def test_a_layer_that_code_depends_on_is_kept_and_told(self) -> None:
        pruned, notes = prune_module(Reshaping(), (torch.randn(3, 8),), 0.5, multiple=1)
        assert widths(pruned)["first.weight"] == (8, 8)
        assert widths(pruned)["second.weight"] == (16, 8)
        assert any("kept second: the model's code depends on it" in note for note in notes)

    def test_grouped_convolutions_lose_the_same_of_each_group(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 2, 1)
        ).eval()
        x = torch.randn(2, 4, 6, 6)
        pruned, _ = prune_module(net, (x,), 0.5, multiple=4)
        assert pruned[2].groups == 4
        assert pruned[2].out_channels == 8
        assert pruned(x).shape == net(x).shape

    @pytest.mark.parametrize("ratio", [-0.1, 1.0])
    def test_ratios_out_of_range(self, fashion: Any, ratio: float) -> None:
        with pytest.raises(InputError, match="at least 0 and below 1"):
            prune_module(fashion, IMAGES, ratio)

    def test_nothing_to_remove(self, fashion: Any) -> None:
        with pytest.raises(NotApplicable, match="raise the ratio or lower multiple"):
            prune_module(fashion, IMAGES, 0.1, multiple=64)
        with pytest.raises(NotApplicable, match="it makes an output"):
            prune_module(nn.Linear(4, 3), (torch.randn(2, 4),), 0.5)

    @given(
        width=st.integers(1, 300), ratio=st.floats(0, 0.99), multiple=st.sampled_from([1, 8, 16])
    )
    def test_rounding(self, width: int, ratio: float, multiple: int) -> None:
        kept = rounded(width, ratio, multiple)
        assert min(width, multiple) <= kept <= width
        if kept < width:
            assert kept % multiple == 0
            assert kept == multiple or abs(kept - width * (1 - ratio)) <= multiple / 2 + 1e-6


class TestTaylor:
    def test_units_that_real_data_never_wakes_go_first(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
        rng = np.random.default_rng(0)
        values = rng.standard_normal((64, 8)).astype(np.float32)
        values[:, 7] = 0
        with torch.no_grad():  # six large units that look at the input which is always zero
            net[0].weight[:6] = 0
            net[0].weight[:6, 7] = 50
            net[0].bias[:6] = 0
        batches = Batches(Dataset("rows", {"x": [v[None] for v in values]}, None, True), 16)
        x = torch.from_numpy(values)
        by_size, _ = prune_module(net, (x,), 0.5, multiple=1)
        by_data, _ = prune_module(net, (x,), 0.5, importance="taylor", multiple=1, batches=batches)
        torch.testing.assert_close(by_data(x), net(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(by_size(x), net(x), atol=1e-2)

    def test_it_needs_data(self, fashion: Any) -> None:
        with pytest.raises(InputError, match="taylor needs data"):
            prune_module(fashion, IMAGES, 0.5, importance="taylor")
