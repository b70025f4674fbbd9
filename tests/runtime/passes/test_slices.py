"""Large batches image by image, as far as a step treats each image by itself."""

import pytest
import torch
from torch import Tensor, fx, nn

from vertebra.runtime.passes import slices
from vertebra.runtime.passes.slices import run_steps, steps_of


class Step(nn.Conv2d):
    """A convolution that remembers how many images came at once."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(cin, cout, 3, stride, 1)
        self.seen: list[int] = []

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        self.seen.append(input.shape[0])
        return super().forward(input)


class Mean(nn.Module):
    """Somebody's layer, which looks at the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def traced(*layers: nn.Module) -> fx.GraphModule:
    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = nn.Sequential(*layers).eval()
    return fx.GraphModule(model, Leaves().trace(model))


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Maps of 16 kB, 16 kB and 4 kB an image; three images are large above 20 kB."""
    monkeypatch.setattr(slices, "LARGE", 20_000)
    return [Step(3, 16, 1), Step(16, 16, 1), Step(16, 16, 2), Step(16, 16, 1)]


@torch.no_grad()
def test_large_maps_go_image_by_image_and_small_ones_together(layers: list[Step]) -> None:
    model = nn.Sequential(*layers)
    x = torch.randn(3, 3, 16, 16)
    wanted = model(x)
    steps = steps_of(traced(*layers), (Step,))
    assert len(steps) == 4
    for layer in layers:
        layer.seen.clear()
    torch.testing.assert_close(run_steps(steps, x), wanted, rtol=1e-5, atol=1e-6)
    assert [layer.seen for layer in layers] == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [3]]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 4, 4), (0, 3, 16, 16)])
def test_small_batches_stay_whole(layers: list[Step], shape: tuple[int, ...]) -> None:
    run_steps(steps_of(traced(*layers), (Step,)), torch.randn(*shape))
    assert [layer.seen for layer in layers] == [[shape[0]]] * 4


@torch.no_grad()
def test_what_may_look_at_the_whole_batch_sees_it(layers: list[Step]) -> None:
    x = torch.randn(3, 3, 16, 16)
    wanted = nn.Sequential(layers[0], Mean(), *layers[1:])(x)
    steps = steps_of(traced(layers[0], Mean(), *layers[1:]), (Step,))
    for layer in layers:
        layer.seen.clear()
    torch.testing.assert_close(run_steps(steps, x), wanted, rtol=1e-5, atol=1e-6)
    assert [layer.seen for layer in layers] == [[1, 1, 1], [3], [3], [3]]


@torch.no_grad()
def test_a_shortcut_is_not_cut_through(layers: list[Step]) -> None:
    """Between its beginning and its end two maps go on: both are one step."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two, self.last = layers

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.last(torch.relu_(self.two(torch.cat((x, self.one(x)), 1)[:, :16]) + self.two(x)))

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = Residual().eval()
    x = torch.randn(3, 3, 16, 16)
    steps = steps_of(fx.GraphModule(model, Leaves().trace(model)), (Step,))
    torch.testing.assert_close(run_steps(steps, x), model(x), rtol=1e-5, atol=1e-6)
    assert len(steps) == 2
