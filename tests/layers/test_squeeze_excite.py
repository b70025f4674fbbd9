import pytest
import torch

from vertebra.layers.squeeze_excite import SqueezeExcite, squeezed


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(32, 1 / 16, 8), (320, 1 / 16, 24), (120, 1 / 4, 32)])
def test_squeezed_is_the_nearest_multiple_of_eight(channels: int, ratio: float, hidden: int) -> None:
    assert squeezed(channels, ratio) == hidden


def test_each_channel_is_scaled_by_one_gate_between_nought_and_one() -> None:
    x = torch.rand(2, 16, 5, 4) + 1
    gate = SqueezeExcite(16, 8, "relu")(x) / x
    torch.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))
    assert 0 < gate.min() < gate.max() < 1
