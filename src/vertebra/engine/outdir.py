"""What a run leaves in its folder beside checkpoints: config.yaml, split.csv, metrics.csv, and the model itself."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from vertebra.data.datasets import Dataset
from vertebra.engine import checkpoint, multilabel
from vertebra.engine.checkpoint import CheckpointError, cannot_write, write_whole
from vertebra.engine.config import RunConfig
from vertebra.engine.evaluate import Evaluation, Metrics
from vertebra.engine.multilabel import MultiEvaluation, MultiMetrics
from vertebra.engine.settings import as_yaml, config_hash
from vertebra.engine.setup import split_table
from vertebra.hub.factory import describe
from vertebra.hub.save import save_model
from vertebra.models.backbone import Backbone
from vertebra.spec import SettingError, State, VertebraError, WeightsError, files
from vertebra.spec.files import Lock

CONFIG, SPLIT, METRICS, VALIDATION = "config.yaml", "split.csv", "metrics.csv", "validation.json"
LABELS, MODEL, RECORD, REPORT = "labels.txt", "model.safetensors", "config.json", "report.html"
_RUNNING = ".running"
"""Locked, and named so, while a process trains in the folder; its content is that process' number."""


class Claim:
    """A run's folder is its own: raises where another process trains in it, where there is another run in it, or a
    model of whatever origin, which this one would write over; halves of files that a kill left go.

    A folder that is not there yet is claimed by `take`, which makes it.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        self.out = out
        self._lock = Lock(out / _RUNNING)
        if out.exists() and not out.is_dir():
            raise SettingError(f"--out {out} is a file; name a folder")
        if out.is_dir():
            self._acquire()
            try:
                _look(out, resume)
            except BaseException:
                self.release()
                raise

    def take(self) -> None:
        """Before the first file is written."""
        if not self._lock.held:
            self._acquire()
            _look(self.out, resume=False)  # somebody else may have been sooner

    def _acquire(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if self._lock.acquire():
                return
        except OSError as error:
            raise CheckpointError(cannot_write(self._lock.path, error)) from error
        number = self._lock.holder
        raise VertebraError(
            f"another process{f' ({number})' if number else ''} is training in {self.out}; wait for it, or name "
            "another --out"
        )

    def release(self) -> None:
        """The folder is anybody's."""
        self._lock.release()


def _look(out: Path, resume: bool) -> None:
    """What `Claim` says of the files in it."""
    goes_on = bool(checkpoint.all_in(out))
    if not resume and (goes_on or (out / METRICS).exists()):
        finished = (out / METRICS).exists()
        what = "" if finished else " that has finished no epoch"
        rid = "" if finished else ", delete the folder"
        raise VertebraError(
            f"{out} already holds a run{what}; go on with it (--resume auto){rid}, or name another --out"
        )
    there = [name for name in (METRICS, VALIDATION, MODEL, RECORD, REPORT) if (out / name).is_file()]
    if not (out / CONFIG).exists():  # of a run that never came to its first checkpoint, the others are there, too
        there += [name for name in (SPLIT, LABELS) if (out / name).exists()]
    if there and not goes_on:
        lost = f", and no checkpoint to go on from in {checkpoint.FOLDER}/" if resume else ""
        raise VertebraError(f"{out} already holds {there[0]}{lost}; name another --out, so that it is not written over")
    for folder in (out, out / checkpoint.FOLDER):
        files.sweep(folder)


def start(
    config: RunConfig,
    dataset: Dataset,
    classes: Sequence[str],
    out: Path,
    went_on: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Config and split, as the run begins, or goes on with another number of epochs."""
    before = "".join(
        f"# went on from run {r['run']} of {r['epochs']} epochs after epoch {r['after']}\n" for r in went_on
    )
    _text(out / CONFIG, f"# run {config_hash(config)}\n{before}{as_yaml(config)}")
    _text(out / SPLIT, split_table(dataset))
    _text(out / LABELS, "".join(f"{name}\n" for name in classes))


def write_metrics(rows: Sequence[dict[str, float]], out: Path) -> None:
    """The whole table anew, so that a resumed run leaves no line twice."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)  # an older version's rows may lack some
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows({key: _short(value) for key, value in row.items()} for row in rows)
    _text(out / METRICS, text.getvalue())


def _short(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def watched(row: Mapping[str, float]) -> tuple[str, float]:
    """The figure by which epochs are compared: what it is called, and its value (a share; more is better)."""
    several = f"val_{MultiMetrics.MAIN}"
    return ("mAP", row[several]) if several in row else ("top-1", row[f"val_{Metrics.MAIN}"])


def best(rows: Sequence[dict[str, float]]) -> int:
    """The epoch (from 1) that was best on the validation split; 0 before the first. Of equals, which are many on few
    images, that of the least loss; one whose loss is no finite number is the last choice.
    """

    def worth(i: int) -> tuple[float, float, int]:
        loss = rows[i].get("val_loss", 0.0)
        finite = math.isfinite(loss)
        return (watched(rows[i])[1] if finite else -1.0), -loss if finite else -math.inf, -i

    return max(range(len(rows)), key=worth) + 1 if rows else 0


def write_model(
    state: State,
    like: Backbone,
    validation: Mapping[str, Any],
    classes: Sequence[str],
    out: Path,
    training: Mapping[str, Any],
) -> None:
    """`config.json` and `model.safetensors` (`state`), which `--model OUTDIR` reads, and `validation`, how well it did.

    `training`, how it came about, goes into the weights' own record.
    """
    record = {**describe(like), "label_names": list(classes)}
    extra = {"label_names": list(classes), "training": without_nan(training)}
    try:
        save_model(like, out / MODEL, extra=extra, state=state)
    except WeightsError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise CheckpointError(cannot_write(out / MODEL, error.__cause__)) from error
    _text(out / RECORD, json.dumps(record, indent=1, ensure_ascii=False))
    _text(out / VALIDATION, json.dumps(without_nan(validation), indent=1))  # ASCII: names of files may be no UTF-8


@contextmanager
def tracking(out: Path) -> Generator[None]:
    """What trackers do within ends, where they cannot write, in one line as for any other file of a run.

    TensorBoard writes in a thread of its own, which would print its traceback before the caller gets the error.
    """
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        raise CheckpointError(cannot_write(out / "vertebra", error)) from error
    finally:
        threading.excepthook = before


def as_record(result: Evaluation | MultiEvaluation, classes: Sequence[str]) -> dict[str, Any]:
    """An evaluation as JSON: the summary, a row a class, the confusion matrix (not of several classes an image)."""
    if isinstance(result, MultiEvaluation):
        record = multilabel.as_record(result.metrics, classes)
        record["classes"] = [
            {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in record["classes"]
        ]
        return without_nan(record)
    m = result.metrics
    rows = zip(classes, m.recall, m.precision, m.f1, (sum(row) for row in m.confusion), strict=True)
    record = {
        "images": m.images,
        "skipped": m.skipped,
        **m.summary(),
        "classes": [
            {"name": name, "recall": round(r, 6), "precision": round(p, 6), "f1": round(f, 6), "images": n}
            for name, r, p, f, n in rows
        ],
        "confusion": m.confusion,
    }
    return without_nan(record)


def without_nan(value: Any) -> Any:
    """The same with None for what is no finite number, which JSON does not know (as the recall of a class that never
    occurs, or the loss where no image could be read).
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path, text: str) -> None:
    write_whole(path, text.encode(errors="surrogateescape"))  # names of files may be no UTF-8
