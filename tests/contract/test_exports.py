"""Every architecture of the sample leaves for other runtimes: one graph, free in its sizes, answers alike in each.

The graph is traced once, by the code that `vertebra export` runs; that very program is run as `torch.export` left it,
goes on to ONNX and is run by ONNX Runtime, and from there to OpenVINO. What is only more of the same is left out: a
stage of many equal blocks has two, RegNet's half of them (each CNN family's smallest member is whole). The command
itself, its check in a new process and the other formats are the business of tests/export.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.subject import keeps
from tests.zoo import ARCHS, SAMPLE, is_transformer, random_state, small_model, small_size
from vertebra.export.artefact import open_file
from vertebra.export.bounds import BOUNDS
from vertebra.export.formats import Job, onnx_to_openvino
from vertebra.export.graph import any_size, plan, size_multiple
from vertebra.export.write import Options, record_of
from vertebra.hub.registry import REGISTRY
from vertebra.models.backbone import Backbone
from vertebra.models.regnet import RegNetConfig
from vertebra.runtime.compare import Array, compare
from vertebra.runtime.graph import save_onnx

Run = Callable[[Array], Array]


def smallest(family: str) -> str:
    return min((a for a in ARCHS if REGISTRY.family(a).name == family), key=lambda a: REGISTRY.variant(a).params)


def shortened(arch: str) -> dict[str, Any]:
    config: Any = REGISTRY.variant(arch).config
    if is_transformer(arch):
        return {"depth": 2}
    if arch == smallest(REGISTRY.family(arch).name):
        return {}
    if isinstance(config, RegNetConfig):  # half of the blocks, twice as steep: the same four stages
        if config.depth < 14:
            return {}
        return {"depth": config.depth // 2 + 2, "wa": 2 * config.wa}
    return {"depths": tuple(min(depth, 2) for depth in config.depths)}


def subject(arch: str) -> Backbone:
    model = small_model(arch, num_classes=10, device="meta", **shortened(arch)).eval().requires_grad_(False)
    model.load_state_dict(random_state(model.state_dict()), assign=True)
    model.pretrained_cfg["input_size"] = (3, *(small_size(arch) if is_transformer(arch) else (64, 64)))
    return model


@pytest.mark.parametrize("arch", SAMPLE)
def test_what_is_left_out_is_only_more_of_the_same(arch: str) -> None:
    """As many stages at the same strides (a transformer's are its blocks), made of the same modules."""
    whole, short = (small_model(arch, device="meta", **options) for options in ({}, shortened(arch)))
    if not is_transformer(arch):
        assert [s["reduction"] for s in short.feature_info] == [s["reduction"] for s in whole.feature_info]
    assert {type(m) for m in short.modules()} == {type(m) for m in whole.modules()}


def images(model: Backbone, dynamic_size: bool) -> list[Tensor]:
    """Two batches; and two sizes, neither square, where the graph has promised to take them."""
    unit = size_multiple(model)
    _, height, width = model.pretrained_cfg["input_size"]
    sizes = [(2 * unit, 3 * unit), (3 * unit, 2 * unit)] if dynamic_size else 2 * [(height, width)]
    return [torch.randn(batch, 3, *size) for batch, size in zip((1, 3), sizes, strict=True)]


def options(kind: str, dynamic_size: bool) -> Options:
    return Options(kind, "f32", dynamic_size, with_preprocess=False, batch=None)


@pytest.mark.parametrize("arch", SAMPLE)
@torch.no_grad()
def test_one_graph_answers_alike_in_every_runtime(arch: str, unchecked_shapes: None) -> None:
    model, free = subject(arch), keeps(arch, "export_size")
    planned = plan(model, dtype=torch.float32, with_preprocess=False, dynamic_size=free, batch=None)
    program = planned.program()
    traced = program.module()
    with TemporaryDirectory() as folder:
        onnx, openvino = Path(folder, "model.onnx"), Path(folder, "model.xml")
        save_onnx(program, onnx, record_of(model, options("onnx", free)).to_strings())
        onnx_to_openvino(onnx, Job(planned, record_of(model, options("openvino", free))), openvino)
        runs: dict[str, Run] = {"torch.export": lambda x: traced(torch.from_numpy(x)).numpy()}
        runs |= {file.suffix: open_file(file)[1] for file in (onnx, openvino)}
    eager = any_size(model) if free else model
    for image in images(model, free):
        expected = eager(image).numpy()
        for runtime, run in runs.items():
            figures = compare(expected, run(image.numpy()), BOUNDS["f32"])
            assert figures.within(BOUNDS["f32"]), (runtime, tuple(image.shape), figures)
