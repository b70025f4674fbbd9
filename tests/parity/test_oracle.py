"""timm is the oracle: every option of its model API, crossed, made of both libraries on the same weights.

docs/timm.md lists what differs, and why; the list is what this run gives. After a change that is meant:
`VERTEBRA_WRITE=1 scripts/test tests/parity/test_oracle.py`.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from tests.parity.crossings import Pair, missing_names
from tests.zoo import ARCHS, is_transformer
from vertebra.hub.registry import REGISTRY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "timm.md"
BEGIN, END = "<!-- differences: begin -->\n", "<!-- differences: end -->\n"
KINDS = (
    "dla46_c",
    "cspresnet50",
    "cs3darknet_s",
    "dpn48b",
    "regnety_002",
    "regnetz_005",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
)
"""One of each kind that answers differently somewhere: a stem with a pooling, a split stage, a last convolution ..."""
CROSSED = ARCHS if os.environ.get("VERTEBRA_TEST_ALL") else KINDS
GROUPS = {
    "all": set(KINDS),
    "CNNs": {arch for arch in KINDS if not is_transformer(arch)},
    "ViT, DeiT": {arch for arch in KINDS if is_transformer(arch)},
}
Row = tuple[str, str, str]
"""The call, timm's answer, ours."""

REASONS = (
    (r"output_fmt='NLC'\) \| `AssertionError` \| answers", "a map's pixels in rows: asked alike of every model"),
    (r"output_stride=\d+\) \| `AssertionError` \| answers", "dilation is every CNN's"),
    (
        r"feature_cls='hook'.* \| another state_dict",
        "what lies behind the last stage asked for is deleted, as for the other kinds",
    ),
    (
        r"out_indices=\(-1, 0\)\) \| answers \| (another maps|other values)",
        "maps come in the order asked for, which is `feature_info`'s",
    ),
    (r"out_indices=0\) \| answers \| `", "no stage at all is taken for a mistake"),
    (r"out_indices=\(99,\)\) \| `IndexError` \| `VertebraError`", "refused for its kind first"),
    (r"create_model\((out_indices|feature_cls)=", "an option that would do nothing"),
    (r"\| another training$", "a changed model is in the mode in which it was, whole"),
    (r"global_pool='map'\) \| `AssertionError` \| answers", "the pooling is made, with fresh weights"),
    (r"(reset_classifier|create_model)\(global_pool=''\) \| `RuntimeError` \| answers", "logits at every pixel"),
    (r"(act|norm)_layer='nope'\) \| `KeyError`", "an unknown name, as any other"),
    (
        r"act_layer='prelu'\) \| answers \| another state_dict",
        "an activation is no part of the normalisation before it",
    ),
    (r"drop_path_rate=0.1\) \| `TypeError` \| answers", "stochastic depth is every model's"),
    (r"stem_width=16\) \| `TypeError` \| answers", "any field of a config is an option"),
    (r"norm_layer=.* \| answers \| `UnknownOptionError`", "it would reach two layers of the whole network"),
    (r"zero_init_last=True\) \| answers \| `UnknownOptionError`", "every residual branch starts at zero"),
    (r"no_embed_class=True\) \| `RuntimeError` \| answers", "both tokens go without a position"),
    (r"reset_classifier\(global_pool=''\) \| answers \| `VertebraError`", "its heads read their own tokens"),
    (r"reg_tokens=2\) \| answers \| ", "timm makes tokens that nothing reads"),
    (
        r"create_model\((global_pool='prr'|pre_norm|final_norm|qk_norm|pool_include|proj_bias|pos_embed|scale_|class_token)",
        "of architectures that are not here",
    ),
    (r"^\.\w+ ", "timm's own bookkeeping"),
)


def reason(row: Row) -> str:
    """Why a difference is meant. One without a reason is a fault to mend."""
    text = " | ".join((row[0].strip("`"), *row[1:]))
    found = next((why for pattern, why in REASONS if re.search(pattern, text)), None)
    assert found is not None, f"differs from timm without a reason: {text}"
    return found


@cache
def run(arch: str) -> frozenset[Row]:
    pair = Pair.of(arch)
    rows = {
        (f"`{call}`", theirs, ours) for crossing in pair.crossings() for call, theirs, ours in crossing.differences()
    }
    rows |= {(f"`.{name}`", "there", "not") for name in missing_names(pair.ours, pair.theirs)}
    return frozenset(rows)


def table(rows: dict[str, frozenset[Row]]) -> str:
    """The list as the page holds it."""
    lines = ["| call | timm | vertebra | models | why |", "|---|---|---|---|---|"]
    for row in sorted(set[Row]().union(*rows.values())):
        archs = {arch for arch, found in rows.items() if row in found}
        models = next((name for name, group in GROUPS.items() if group == archs), ", ".join(sorted(archs)))
        lines.append(f"| {' | '.join(row)} | {models} | {reason(row)} |")
    return "\n".join(lines) + "\n"


def documented() -> dict[str, set[Row]]:
    """Architecture -> its rows of the page."""
    listed: dict[str, set[Row]] = {arch: set() for arch in KINDS}
    for line in PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]:
        call, theirs, ours, models, why = line.strip("| ").split(" | ")
        assert why == reason((call, theirs, ours))
        for arch in GROUPS.get(models, set(models.split(", "))):
            listed[arch].add((call, theirs, ours))
    return listed


def test_the_page_is_written_on_demand() -> None:
    if os.environ.get("VERTEBRA_WRITE"):
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table({arch: run(arch) for arch in KINDS}) + END + rest.partition(END)[2])
    assert BEGIN in PAGE.read_text()


@pytest.mark.parametrize("arch", CROSSED)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_answers_differ_from_timms_as_the_page_says(arch: str) -> None:
    page = documented()
    if arch in KINDS:
        assert run(arch) == page[arch], "run VERTEBRA_WRITE=1 scripts/test tests/parity/test_oracle.py"
        return
    family = REGISTRY.family(arch).name
    of_its_kind = (
        rows for each, rows in page.items() if REGISTRY.family(each).name in (family, {"deit": "vit"}.get(family))
    )
    assert run(arch) <= set[Row]().union(*of_its_kind)


def test_a_difference_without_a_reason_is_refused() -> None:
    with pytest.raises(AssertionError, match="without a reason"):
        reason(("`forward_intermediates(norm=True)`", "answers", "other values"))
