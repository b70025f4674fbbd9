"""A state dict made to fit a model: head, input channels, position embedding. All else must match."""

import math
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vertebra.layers.patch_embed import resample_patches, resample_positions
from vertebra.models.backbone import Backbone
from vertebra.models.vit import VisionTransformer
from vertebra.spec import Family, ModelConfig, State, WeightsError


@dataclass(slots=True)
class LoadReport:
    """What loading changed. Empty lists: the checkpoint went in as it was."""

    reinitialised: list[str] = field(default_factory=list[str])
    """Names that have no counterpart in the checkpoint and start fresh."""
    resized: list[str] = field(default_factory=list[str])
    """Names adapted to another number of input channels or another image size."""
    renamed: list[str] = field(default_factory=list[str])
    """Checkpoint keys that go by another name here."""
    taken: str = ""
    """What a file's own record decided in the place of the name that was given with it, in one line."""
    dropped: dict[str, str] = field(default_factory=dict[str, str])
    """Checkpoint keys left out, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What is known, and what was asked for, of a checkpoint that differs from the model."""

    image: tuple[int, int] | None = None
    """(height, width) in pixels of the images that its position embedding was made for, where a record says so."""
    patches: bool = False
    """A size of patches was asked for: the projection is resampled to it."""
    strict: bool = True
    """False: what is missing starts fresh, and what the model lacks is left out."""


def adapt_input(weight: Tensor, in_chans: int) -> Tensor:
    """A stem's (d, c, kh, kw) weight for another number of input channels.

    1 channel: the sum over the old ones. More: the old ones repeated in turn, scaled so that a response to equal
    channels stays what it was.
    """
    old = weight.shape[1]
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeats = -(-in_chans // old)
    return (weight.float().repeat(1, repeats, 1, 1)[:, :in_chans] * (old / in_chans)).to(weight.dtype)


def drop_unused(state: State, wanted: State, family: Family, report: LoadReport) -> State:
    """Without the keys that this model lacks and the family declares unused by any forward pass."""
    for key in state:
        reason = next((why for pattern, why in family.unused.items() if re.search(pattern, key)), None)
        if reason is not None and key not in wanted:
            report.dropped[key] = reason
    return {key: value for key, value in state.items() if key not in report.dropped}


def fit_head(state: State, model: Backbone, *, new_head: bool, report: LoadReport) -> State:
    """Where the model has no classifier, or `new_head`, the checkpoint's is left out."""
    if model.num_classes > 0 and not new_head:
        return state
    prefixes = tuple(f"{name}." for name in model.config.classifiers)
    why = "a new classifier was asked for" if model.num_classes > 0 else "the model has no classifier"
    report.dropped |= {key: why for key in state if key.startswith(prefixes)}
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def fit_stem(state: State, model: Backbone, report: LoadReport) -> State:
    """The first convolution for the model's number of input channels."""
    key = f"{model.config.first_conv}.weight"
    weight = state.get(key)
    wanted = model.get_parameter(key).shape
    if not isinstance(weight, Tensor) or weight.ndim != 4 or weight.shape[1] == wanted[1]:
        return state
    if weight.shape[0] != wanted[0] or weight.shape[2:] != wanted[2:]:
        return state
    report.resized += [key] if key not in report.resized else []
    return {**state, key: adapt_input(weight, wanted[1])}


def fit_patches(state: State, model: Backbone, report: LoadReport) -> State:
    """A ViT's projection for patches of the model's size, where another was asked for."""
    key = "patch_embed.proj.weight"
    weight = state.get(key)
    if not isinstance(model, VisionTransformer) or not isinstance(weight, Tensor) or weight.ndim != 4:
        return state
    if tuple(weight.shape[2:]) == model.patch_embed.patch_size:
        return state
    report.resized.append(key)
    return {**state, key: resample_patches(weight, model.patch_embed.patch_size)}


def fit_positions(
    state: State, model: Backbone, report: LoadReport, grid: tuple[int, int] | None, origin: str
) -> State:
    """A ViT's position embedding for the model's patch grid, from the checkpoint's `grid` (rows, columns).

    Where no record tells that grid, a square number of positions is taken for a square, unless the model's own grid is
    an oblong of as many: then nobody can know, and it raises.
    """
    table = state.get("pos_embed")
    if not isinstance(model, VisionTransformer) or not isinstance(table, Tensor):
        return state
    if table.ndim != 3 or table.shape[2] != model.embed_dim:
        return state
    prefix = 0 if model.config.no_embed_class else model.num_prefix_tokens
    count, wanted = table.shape[1] - prefix, model.patch_embed.grid_size
    side = math.isqrt(max(count, 0))
    possible = {(side, side)} if side * side == count else set[tuple[int, int]]()
    possible |= {wanted} if math.prod(wanted) == count else set()
    if grid is not None and math.prod(grid) == count:
        possible = {grid}
    if not possible and not state.keys() <= model.state_dict().keys():
        return state  # of another architecture: all that differs is named, not this alone
    if len(possible) != 1:
        grids = " or of ".join(f"{rows}x{columns}" for rows, columns in sorted(possible)) or "no square grid"
        raise WeightsError(
            f"{origin}: pos_embed is {tuple(table.shape)}, of {grids}, and no record says which; say the size of its"
            " images: create_model(..., pretrained_cfg_overlay={'input_size': (3, height, width)})"
        )
    old = possible.pop()
    if old == wanted:
        return state
    report.resized.append("pos_embed")
    return {**state, "pos_embed": resample_positions(table, wanted, prefix=prefix, old_grid=old)}


def grid_of(state: State, image: tuple[int, int] | None, *, padded: bool) -> tuple[int, int] | None:
    """Rows and columns of a checkpoint's own patches on an image of (height, width) pixels."""
    weight = state.get("patch_embed.proj.weight")
    if image is None or not isinstance(weight, Tensor) or weight.ndim != 4:
        return None
    (height, width), (rows, columns) = image, weight.shape[2:]
    return (-(-height // rows), -(-width // columns)) if padded else (height // rows, width // columns)


def fit_pool_norm(state: State, model: Backbone) -> State:
    """A ViT pooled over its patches normalises after pooling: the same norm under its other name."""
    if not isinstance(model, VisionTransformer):
        return state
    old, new = ("norm.", "fc_norm.") if isinstance(model.norm, nn.Identity) else ("fc_norm.", "norm.")
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in state.items()}


def load_state(
    model: Backbone,
    state: State,
    family: Family,
    *,
    new_head: bool = False,
    origin: str = "the checkpoint",
    differs: Differences | None = None,
) -> LoadReport:
    """Fill a model on `meta` from a checkpoint, strictly: what does not fit and was not declared raises, by name.

    Parameters the checkpoint cannot have (a new classifier, an attention pool) stay on `meta`, named in the report.
    """
    differs = differs or Differences()
    report = LoadReport()
    config: ModelConfig = model.config
    wanted = model.state_dict()
    foreign = [key for key in state if key not in wanted]
    state = drop_unused(family.adapt(state, config), wanted, family, report)
    report.renamed = [key for key in foreign if key not in state and key not in report.dropped]
    state = fit_head(state, model, new_head=new_head, report=report)
    padded = isinstance(model, VisionTransformer) and model.patch_embed.dynamic_pad
    grid = grid_of(state, differs.image, padded=padded)
    state = fit_patches(state, model, report) if differs.patches else state
    state = fit_stem(state, model, report)
    state = fit_pool_norm(fit_positions(state, model, report, grid, origin), model)
    fresh = config.classifiers if new_head else ()
    fresh += ("attn_pool",) if not any(k.startswith("attn_pool.") for k in state) else ()
    report.reinitialised = [k for k in wanted if k not in state and k.startswith(tuple(f"{p}." for p in fresh))]
    # BatchNorm's counter is newer than some checkpoints; nothing but momentum=None reads it.
    counters = {k: torch.zeros((), dtype=torch.long) for k in wanted if k.endswith(".num_batches_tracked")}
    state = {k: v for k, v in counters.items() if k not in state} | state
    if not differs.strict:
        foreign = [key for key in state if key not in wanted]
        if not any(key in wanted and key not in counters for key in state):
            raise WeightsError(f"{origin} holds nothing of this model: {', '.join(foreign[:3])}, ...; is it another's?")
        report.dropped |= dict.fromkeys(foreign, "pretrained_strict=False, and this model has no such thing")
        report.reinitialised += [k for k in wanted if k not in state and k not in report.reinitialised]
        state = {key: value for key, value in state.items() if key in wanted}
    check_match(state, wanted, set(report.reinitialised), origin)
    _assign(model, state)
    return report


def _assign(model: Backbone, state: State) -> None:
    """`load_state_dict(assign=True)` without its checks, which are done: two thirds of its time."""
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            new = state.get(start + name)
            if new is None:
                continue
            new = new.to(old.dtype)
            setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def check_match(state: State, wanted: State, fresh: set[str], origin: str) -> None:
    """Raise, naming the keys, where a state dict and a model differ."""
    missing = [k for k in wanted if k not in state and k not in fresh]
    unexpected = [k for k in state if k not in wanted]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, needs {tuple(wanted[k].shape)}"
        for k in state
        if k in wanted and state[k].shape != wanted[k].shape
    ]
    parts = [
        f"{title} ({len(keys)}): {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        if keys
    ]
    if parts:
        raise WeightsError(f"{origin} does not fit this model: {'; '.join(parts)}")
