"""Which route to an INT8 model that keeps its accuracy: on a mobile CNN, which loses most.

A depthwise-separable network for Fashion-MNIST is made by distillation from the shipped ResNet.
Then the same number of steps is spent in three ways, each judged on the 10,000 test images:

* float: more distillation without rounding, then the pass ``int8{mode=static}``;
* rounding: distillation with fake quantization, float weights exported, then the same pass;
* pt2e: torchao's quantization-aware training, converted and exported as QDQ.

    python -m benchmarks.training.qat OUT [--seconds 150]   # again until it is finished
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training.common import int8_static, latency_ratios, parse, trained_in_pieces
from benchmarks.training.fashion import EXAMPLE, accuracy, export, images, source
from optimize.models.data import Dataset
from optimize.passes.training.batches import Batches
from optimize.passes.training.options import DistillOptions
from optimize.passes.training.outputs import distance
from optimize.passes.training.qat import recover_quantized

MAKING = DistillOptions(steps=1200, lr=4e-3, patience=0, evaluations=6)
RECOVERY = replace(MAKING, steps=300, lr=5e-4, evaluations=3)


class Mobile(nn.Module):
    """A stem and five depthwise-separable blocks: pixels uint8 (N,1,28,28) -> logits (N,10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(1, 16, 3, 2, 1)]
        for cin, cout, stride in (
            (16, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
        ):
            layers += [_conv(cin, cin, 3, stride, cin), _conv(cin, cout, 1, 1, 1)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels to logits."""
        x = self.layers((image.float() / 255 - 0.286) / 0.353)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _conv(cin: int, cout: int, kernel: int, stride: int, groups: int) -> nn.Module:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU6())


def main() -> None:
    """Train for a while; when finished, compare the routes."""
    sys.path.insert(0, str(EXAMPLE))  # the example's train.py imports its arch.py
    arguments = parse(__doc__)
    train, test = images("train"), images("t10k")
    batches = Batches(train, 128, 0.02)
    folder = Path(arguments.out) / "qat"
    torch.manual_seed(0)
    stages = {name: folder / name for name in ("made", "float", "rounding")}
    for stage in stages.values():
        stage.mkdir(parents=True, exist_ok=True)
    teacher = source()
    net = trained_in_pieces(Mobile(), teacher, batches, MAKING, stages["made"], arguments)
    if net is None:
        return
    longer = trained_in_pieces(net, teacher, batches, RECOVERY, stages["float"], arguments)
    rounded = trained_in_pieces(
        net, teacher, batches, RECOVERY, stages["rounding"], arguments, recover_quantized
    )
    if longer is None or rounded is None:
        return
    paths = {"float": export(net, folder / "net.onnx")}
    for name, module in (("net", net), ("float", longer), ("rounding", rounded)):
        path = export(module, folder / f"{name}.onnx")
        paths[f"{name}, static"] = int8_static(path, train.take(range(128)), folder / f"i8-{name}")
    try:
        paths["pt2e"] = pt2e(net, teacher, batches, folder / "pt2e.onnx")
    except Exception as error:  # noqa: BLE001  a route that does not work is a result
        print(f"pt2e: {type(error).__name__}: {str(error)[:300]}")
    compare(paths, test)


def pt2e(net: nn.Module, teacher: nn.Module, batches: Batches, path: Path) -> Path:
    """Train with torchao's fake quantization, convert, export."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = (torch.zeros(2, 1, 28, 28, dtype=torch.uint8),)
    dynamic = ({0: torch.export.Dim("n", min=2, max=256)},)
    program: Any = torch.export.export(net, example, dynamic_shapes=dynamic).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    student = prepare_qat_pt2e(program, quantizer)
    move_exported_model_to_train(student)
    optimizer = torch.optim.AdamW(student.parameters(), RECOVERY.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, RECOVERY.steps or 1)
    for step, batch in enumerate(batches.training(epoch=0)):
        if step == RECOVERY.steps:
            break
        with torch.no_grad():
            wanted = teacher(*batch.args)
        loss = distance(student(*batch.args), wanted, "logits", RECOVERY.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    move_exported_model_to_eval(student)
    converted = convert_pt2e(student)
    torch.onnx.export(
        converted,
        example,
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=dynamic,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def compare(paths: dict[str, Path], test: Dataset) -> None:
    """Print accuracy and latency of each."""
    feeds = [{"image": image} for image in test.inputs["image"][:256]]
    ratios = latency_ratios(list(paths.values()), feeds, 1000)
    scores = [accuracy(path, test) for path in paths.values()]
    for (name, _), score, ratio in zip(paths.items(), scores, ratios, strict=True):
        print(f"{name}: top1 {score:.4f} ({100 * (score - scores[0]):+.2f} points), {ratio}")
    print("judged")


if __name__ == "__main__":
    main()
