"""How the weights of a Vision Transformer start: `weight_init`."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from vertebra.models.backbone import reset_if_able


def _zero_bias(module: nn.Linear) -> None:
    if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  # torch declares it Parameter
        nn.init.zeros_(module.bias)


def truncated(module: nn.Module, name: str) -> None:
    """Normal with deviation 0.02, cut at two; the patches' convolution as torch starts one."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        _zero_bias(module)
    else:
        reset_if_able(module)


def torchs(module: nn.Module, name: str) -> None:
    """Every layer as torch starts it."""
    reset_if_able(module)


def jax(module: nn.Module, name: str) -> None:
    """The authors': Xavier, the MLPs' biases near 0, the patches' convolution LeCun's, the head at 0."""
    if isinstance(module, nn.Linear) and name.startswith("head"):
        nn.init.zeros_(module.weight)
        _zero_bias(module)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if "mlp" in name and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.normal_(module.bias, std=1e-6)
        else:
            _zero_bias(module)
    elif isinstance(module, nn.Conv2d):
        # A normal cut at two deviations has 0.8796 of its deviation.
        std = math.sqrt(1 / module.weight[0].numel()) / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        reset_if_able(module)


def jax_nlhb(module: nn.Module, name: str) -> None:
    """`jax`, with the head's bias at -log(classes), where a loss over each class alone starts."""
    jax(module, name)
    if isinstance(module, nn.Linear) and name.startswith("head"):
        nn.init.constant_(module.bias, -math.log(module.out_features))


def moco(module: nn.Module, name: str) -> None:
    """Xavier, for queries, keys and values each by itself (MoCo v3, arXiv:2104.02057)."""
    if not isinstance(module, nn.Linear):
        reset_if_able(module)
        return
    if name.endswith("qkv"):
        reach = math.sqrt(6 / (module.out_features // 3 + module.in_features))
        nn.init.uniform_(module.weight, -reach, reach)
    else:
        nn.init.xavier_uniform_(module.weight)
    _zero_bias(module)


WEIGHT_INITS: Mapping[str, Callable[[nn.Module, str], None]] = MappingProxyType(
    {"": truncated, "jax": jax, "jax_nlhb": jax_nlhb, "moco": moco, "reset": torchs, "skip": torchs}
)
"""Tokens and positions start the same under all of them."""
