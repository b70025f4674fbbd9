"""How far answers from quickly read photos lie from those of the exact way: every pixel, the published transform.

    python benchmarks/reading.py [--sizes N] [--photos N]

The photos of `../shared/data/photos`, re-encoded at random sizes from 300 to 4000 px (longer side; quality 75 to 95,
colours at full, half and quarter resolution), read by `Predictor`'s reader and by `validate`'s, and answered by
DeiT-Tiny with its published weights and by dla46_c.tin100.

Bars: probabilities within 0.05 for 99.5 % of the photos and never above 0.1 apart; first classes that change <= 0.5 %
(those whose two best lie within 0.02 aside); `validate` within 0.2 points of `--exact`.
"""

import argparse
import csv
import io
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from common import SHARED, keep
from PIL import Image

import vertebra
from vertebra.data import create_transform, decode, resolve_model_data_config
from vertebra.data.eval_reader import eval_reader
from vertebra.engine.reading import split

CLOSE, NEVER, CHANGED, TIE, POINTS = 0.05, 0.1, 0.005, 0.02, 0.2
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
READERS = ("predictor", "validate")


def models() -> dict[str, Any]:
    """By name: real weights, ready to answer."""
    deit = vertebra.create_model("deit_tiny_patch16_224", checkpoint_path=str(WEIGHTS))
    return {"deit_tiny": deit.eval(), "dla46_c.tin100": vertebra.load_model("dla46_c.tin100").eval()}


def encoded(photo: Path, longer: int, dice: random.Random) -> bytes:
    """The photo as a JPEG whose longer side has `longer` pixels."""
    image = decode(photo)
    share = longer / max(image.size)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    buffer = io.BytesIO()
    resized = image.resize(size, Image.Resampling.LANCZOS)
    resized.save(buffer, "JPEG", quality=dice.randint(75, 95), subsampling=dice.randrange(3))
    return buffer.getvalue()


def read(job: tuple[Path, int, int, list[dict[str, Any]]]) -> list[list[torch.Tensor]]:
    """For each model's preprocessing: what the exact way, `Predictor` and `validate` make of one photo at one size."""
    photo, longer, seed, configs = job
    torch.set_num_threads(1)
    content, found = encoded(photo, longer, random.Random(seed)), list[list[torch.Tensor]]()
    for config in configs:
        transform = create_transform(**config, is_training=False)
        quick = eval_reader(config)
        assert quick is not None
        steps = split(transform, exact=False)
        levels = steps(content)
        measured = levels if steps.batch is None else steps.batch(levels[None])[0]
        found.append([transform(decode(content)), quick(content), measured])
    return found


def lines_of(name: str, reader: str, exact: torch.Tensor, quick: torch.Tensor, labels: torch.Tensor) -> Any:
    """(figures, a line): probabilities (n, k) of both ways; labels (n,), -1 where the model knows no such class."""
    apart = (exact - quick).abs().amax(1)
    best = exact.topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > TIE
    changed = ((exact.argmax(1) != quick.argmax(1)) & clear).double().mean().item()
    known = labels >= 0
    right = [100 * (p.argmax(1) == labels)[known].double().mean().item() for p in (exact, quick)]
    figures = {
        "within": (apart <= CLOSE).double().mean().item(),
        "worst": apart.max().item(),
        "changed": changed,
        "top1_exact": right[0],
        "top1": right[1],
    }
    kept = [figures["within"] >= 0.995, figures["worst"] <= NEVER, changed <= CHANGED]
    if known.any():
        kept.append(abs(right[0] - right[1]) <= POINTS)
    accuracy = f"; top-1 {right[1]:.2f} % (exact {right[0]:.2f} %)" if known.any() else ""
    line = (
        f"{name:<15} {reader:<10} {figures['within']:.2%} within {CLOSE}, at most {figures['worst']:.3f} apart; "
        f"first class changes for {changed:.2%}{accuracy}  {'kept' if all(kept) else 'MISSED'}"
    )
    return figures, line


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, default=30)
    parser.add_argument("--photos", type=int, default=1000)
    options = parser.parse_args()
    folder = SHARED / "photos"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    dice = random.Random(0)
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpeg", ".jpg"))[: options.photos]
    sizes = [dice.randint(300, 4000) for _ in range(options.sizes)]
    named = models()
    configs = [cast("dict[str, Any]", resolve_model_data_config(model)) for model in named.values()]
    index = {row["file"]: int(row["index"]) for row in rows}
    jobs = [(photo, side, 1000 * i + j, configs) for i, photo in enumerate(photos) for j, side in enumerate(sizes)]
    labels = torch.tensor([index.get(photo.name, -1) for photo in photos for _ in sizes])
    answers: dict[str, list[list[torch.Tensor]]] = {name: [[], [], []] for name in named}
    with ProcessPoolExecutor() as pool, torch.inference_mode():
        for found in pool.map(read, jobs, chunksize=4):
            for (name, model), ways in zip(named.items(), found, strict=True):
                for kept, probabilities in zip(answers[name], model(torch.stack(ways)).softmax(1), strict=True):
                    kept.append(probabilities)
    lines = [f"{len(photos)} photos at {len(sizes)} sizes from {min(sizes)} to {max(sizes)} px"]
    figures = dict[str, Any]()
    for name in named:
        exact, *quick = (torch.stack(kept) for kept in answers[name])
        known = labels if exact.shape[1] == 1000 else torch.full_like(labels, -1)
        for reader, own in zip(READERS, quick, strict=True):
            figures[f"{name} {reader}"], line = lines_of(name, reader, exact, own, known)
            lines.append(line)
    keep("reading", lines, figures)


if __name__ == "__main__":
    main()
