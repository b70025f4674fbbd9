"""Stride traded for dilation: the same weights, a denser map (Yu and Koltun, 2016, arXiv:1511.07122)."""

from collections.abc import Sequence

from vertebra.spec import VertebraError

OUTPUT_STRIDES = (8, 16, 32)


def dilate(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
    """(stride, dilation) of each stage so that their product never exceeds `output_stride`.

    A stage that gives up its stride dilates what follows by it, so every weight sees the pixels it was trained on.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise VertebraError(f"output_stride {output_stride} is not possible; allowed: 8, 16, 32")
    reached, dilation, plan = 1, 1, list[tuple[int, int]]()
    for stride in strides:
        if reached * stride > output_stride:
            dilation *= stride
            plan.append((1, dilation))
        else:
            reached *= stride
            plan.append((stride, dilation))
    return plan
