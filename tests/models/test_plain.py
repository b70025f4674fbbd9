"""`model(x)` computes from the weights as they are, under every transform of torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode

from tests.zoo import random_state, relative, small_model, small_size
from vertebra.models.backbone import Backbone

FAMILIES = ["dla46_c", "cs3darknet_focus_s", "dpn48b", "regnety_002", "deit_tiny_patch16_224"]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own derivatives use it


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """In evaluation, in the type that most use."""
    made = small_model(request.param, num_classes=3).eval()
    made.load_state_dict(random_state(made.state_dict()))
    made.arch = request.param
    with sdpa_kernel(SDPBackend.MATH):  # torch's other attention kernels know neither forward differentiation nor vmap
        yield made


@pytest.fixture
def image(model: Any) -> Tensor:
    return torch.randn(2, 3, *small_size(model.arch), generator=torch.Generator().manual_seed(1))


def slope(model: nn.Module, x: Tensor, along: Tensor) -> Tensor:
    """Of the answer, along a direction, by differences in double precision."""
    wide, step = model.double(), 1e-6
    with torch.no_grad():
        found = (wide(x.double() + step * along.double()) - wide(x.double() - step * along.double())) / (2 * step)
    model.float()
    return found.float()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_forward_differentiation(model: Any, image: Tensor, mode: Callable[[], Any]) -> None:
    along = torch.randn_like(image)
    expected = slope(model, image, along)
    with mode():
        answer, tangent = jvp(model, (image,), (along,))
        assert relative(answer, model(image)) < 1e-5
        assert relative(tangent, expected) < 1e-2
        with forward_ad.dual_level():
            dual = model(forward_ad.make_dual(image, along))
            assert relative(forward_ad.unpack_dual(dual).tangent, expected) < 1e-2


def test_answers_do_not_depend_on_the_mode(model: Any, image: Tensor) -> None:
    """Bit for bit: with gradients, without, in inference mode, below a mode of somebody's, or mapped over images."""
    with torch.enable_grad():
        expected = model(image).detach()
    with torch.no_grad():
        assert torch.equal(model(image), expected)
        with BaseTorchFunctionMode():
            assert torch.equal(model(image), expected)
    with torch.inference_mode():
        assert torch.equal(model(image), expected)
    assert relative(vmap(lambda x: model(x.unsqueeze(0))[0])(image), expected) < 1e-5


def test_weights_of_somebody_elses(model: Any, image: Tensor) -> None:
    """`functional_call`, also over a stack of values of one weight, and derivatives by a weight."""
    names = [name for name, p in model.named_parameters() if p.ndim == 4]
    name = names[len(names) // 2] if names else "head.weight"
    old = dict(model.named_parameters())[name].detach()
    stack = torch.stack((old, old * 2))
    with torch.no_grad():
        mapped = vmap(lambda w: functional_call(model, {name: w}, (image,)))(stack)
        for number, weight in enumerate(stack):
            assert relative(mapped[number], functional_call(model, {name: weight}, (image,))) < 1e-4
        assert relative(mapped[0], model(image)) < 1e-4
        assert not torch.equal(mapped[0], mapped[1])
    bias = next(n for n, p in model.named_parameters() if p.ndim == 1)
    value = dict(model.named_parameters())[bias].detach()
    assert jacrev(lambda b: functional_call(model, {bias: b}, (image[:1],)).sum())(value).abs().sum() > 0


@torch.no_grad()
def test_one_number_edited_by_hand_counts(model: Any, image: Tensor) -> None:
    """As fault injection and pruning do it, through `.data`."""
    before, seen = model(image), list[bool]()
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.ndim > 1]
    for name, weight in weights[:: len(weights) // 8]:
        place = tuple(int(torch.randint(n, ())) for n in weight.shape)
        kept = weight.data[place].clone()
        weight.data[place] += 1e3
        changed = model(image)
        assert relative(changed, copy.deepcopy(model)(image)) < 1e-5, f"{name}{place}"
        seen.append(not torch.equal(changed, before))
        weight.data[place] = kept
    assert sum(seen) > 2, "some channels are dead behind a ReLU, and some pixels beyond the map; not all"
    assert torch.equal(model(image), before)


def test_no_model_holds_more_than_its_state(model: Backbone, image: Tensor) -> None:
    with torch.no_grad():
        model(image)
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        held = [value for value in vars(module).values() if isinstance(value, Tensor)]
        assert all(t.data_ptr() in own for t in held), name
