"""The two-layer perceptron of a transformer block."""

from jaxtyping import Float
from torch import Tensor, nn

from vertebra.layers.activation import make_activation
from vertebra.spec import Layer


class Mlp(nn.Module):
    """Linear, activation (GELU), linear; `hidden` channels between."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, act: Layer = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = make_activation(act)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
