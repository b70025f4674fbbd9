"""What stands behind a CNN's last map: pooling, dropout, one linear layer."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from vertebra.layers.pool import GlobalPool


class ClassifierHead(nn.Module):
    """(b, c, h, w) -> (b, k) logits, or the (b, d) embedding without classes.

    With `global_pool=''` the same layer answers at every pixel: (b, k, h, w).
    """

    def __init__(self, channels: int, num_classes: int, global_pool: str = "avg", drop_rate: float = 0.0) -> None:
        super().__init__()
        self.global_pool = GlobalPool(global_pool)
        self.drop_rate = drop_rate
        self.num_features = channels * self.global_pool.feature_multiple
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        x = dropout(self.global_pool(x), self.drop_rate, self.training)
        if self.global_pool.pool_type:
            x = x.flatten(1)
            return x if pre_logits else self.fc(x)
        return x if pre_logits else self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:g}"
