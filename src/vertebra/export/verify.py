"""Does a written file answer as the model did? Run as a process of its own, so that nothing of the writer's helps it.

    python -m vertebra.export.verify ARTEFACT REFERENCE

REFERENCE (.safetensors) holds `image.N` and `answer.N`: inputs as the file takes them, and eager's f32 logits.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vertebra.export.artefact import TINY, open_file
from vertebra.export.bounds import BOUNDS, PHOTO_BOUND
from vertebra.export.record import Record
from vertebra.runtime import interpreter
from vertebra.runtime.compare import Array, Bound, Figures, compare
from vertebra.spec import VertebraError


@dataclass(frozen=True, slots=True)
class Case:
    """One input's shape, and how near the answers lay."""

    shape: tuple[int, ...]
    figures: Figures

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        f = self.figures
        what = "images' probabilities" if f.several else "first classes"
        return f"{size}: cosine {f.cosine:.6f}, error {f.error:.1e}, {f.flipped} of {f.images} {what} changed"


def bound_for(record: Record) -> Bound:
    """What a file of this type must keep."""
    return PHOTO_BOUND if record.with_preprocess and record.dtype == "f32" else BOUNDS[record.dtype]


def verify(artefact: Path, reference: Path) -> tuple[Record, list[Case]]:
    """Compare in this process. Every case, in order; judging them is `in_new_process`'s and `main`'s."""
    record, run = open_file(artefact)
    tensors, cases = load_file(reference), list[Case]()
    for number in range(len(tensors) // 2):
        image, expected = tensors[f"image.{number}"], tensors[f"answer.{number}"]
        found = run(image)
        if record.with_preprocess:
            found, expected = np.log(np.maximum(found, TINY)), _log_softmax(expected)
        several = bool(record.model.get("multi_label"))
        cases.append(Case(image.shape, compare(expected, found, bound_for(record), several=several)))
    return record, cases


def _log_softmax(logits: Array) -> Array:
    """As far down as the file's own float32 probabilities reach."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.maximum(wide - np.log(np.exp(wide).sum(1, keepdims=True)), np.log(TINY))


def in_new_process(artefact: Path, reference: Path, record: Record) -> list[Case]:
    """`verify` by a fresh interpreter. Raises `VertebraError` with the figures where a bound is broken."""
    command = interpreter.command("vertebra.export.verify", artefact, reference)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=interpreter.environment())
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines or not lines[-1].startswith("["):
        reason = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise VertebraError(f"the written {record.format} file cannot be run: {reason}; nothing was kept")
    found = [Case(tuple(c["shape"]), Figures(**c["figures"])) for c in json.loads(lines[-1])]
    bound = bound_for(record)
    broken = [case for case in found if not case.figures.within(bound)]
    if broken:
        raise VertebraError(
            f"the written {record.format} {record.dtype} file does not answer as the model: {broken[0]}; bounds: cosine"
            f" {bound.cosine}, error {bound.error}; nothing was kept"
        )
    return found


def main(arguments: list[str]) -> int:
    """0: within its bounds; 1: not. The figures are one line of JSON on stdout."""
    artefact, reference = map(Path, arguments)
    record, cases = verify(artefact, reference)
    sys.stdout.write(json.dumps([asdict(case) for case in cases]) + "\n")
    bound = bound_for(record)
    return 0 if all(case.figures.within(bound) for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
