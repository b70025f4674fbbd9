import pytest
import torch
from torch import Tensor, nn

from vertebra.layers import slices
from vertebra.layers.slices import run_steps


class Step(nn.Module):
    """A convolution that remembers how many images came at once."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, stride, 1)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[0])
        return self.conv(x)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Maps of 16 kB, 16 kB and 4 kB an image; three images are large above 20 kB."""
    monkeypatch.setattr(slices, "LARGE", 20_000)
    return nn.Sequential(Step(3, 16, 1), Step(16, 16, 1), Step(16, 16, 2), Step(16, 16, 1)).eval()


def run(steps: nn.Sequential, x: Tensor) -> Tensor:
    return run_steps(list(steps), x, steps.modules())


def test_large_maps_go_image_by_image_and_small_ones_together(steps: nn.Sequential) -> None:
    x = torch.randn(3, 3, 16, 16)
    wanted = steps(x).detach()
    for step in steps:
        step.seen.clear()
    with torch.no_grad():
        out = run(steps, x)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    assert [step.seen for step in steps] == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [3]]


@pytest.mark.parametrize("why", ["gradients", "training", "hook", "one image", "small"])
def test_the_batch_stays_whole_where_somebody_would_notice(steps: nn.Sequential, why: str) -> None:
    x = torch.randn(1 if why == "one image" else 3, 3, *((4, 4) if why == "small" else (16, 16)))
    steps.train(why == "training")
    shapes = list[torch.Size]()
    if why == "hook":
        steps[1].conv.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    with torch.set_grad_enabled(why == "gradients"):
        run(steps, x)
    assert [step.seen for step in steps] == [[x.shape[0]]] * 4
    assert shapes == ([torch.Size((3, 16, 16, 16))] if why == "hook" else [])


def test_channels_last_is_kept(steps: nn.Sequential) -> None:
    x = torch.randn(3, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        out = run(steps.to(memory_format=torch.channels_last), x)
    assert steps[0].seen == [1, 1, 1]
    assert out.is_contiguous(memory_format=torch.channels_last)
