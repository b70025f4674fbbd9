"""One writer a format: a planned graph and its record -> a file. Each runtime is imported when its writer runs."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch
from torch import Tensor

from vertebra.export.artefact import RECORD_FILE, WEIGHTS_SHA256
from vertebra.export.graph import Plan
from vertebra.export.record import PREFIX, Record
from vertebra.runtime.graph import quiet, save_onnx
from vertebra.runtime.int8 import quantised
from vertebra.runtime.machine import compiler
from vertebra.runtime.private import aoti
from vertebra.runtime.unreported import openvino_core, unreported
from vertebra.spec import VertebraError
from vertebra.spec.files import sha256


@dataclass(frozen=True, slots=True)
class Job:
    """What a writer is given."""

    plan: Plan
    record: Record
    samples: Sequence[Tensor] = ()
    """Normalised (c, h, w) images to calibrate int8 with."""
    photo: Plan | None = None
    """Preprocessing apart from `plan`, where that is quantised."""
    transformer: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A writer, the end of its files' names, and what it can hold."""

    write: Callable[[Job, Path], None]
    suffix: str
    dtypes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Packages of the extra `fast`."""
    beside: tuple[str, ...] = ()
    """Suffixes of further files, under the same name."""


def write_onnx(job: Job, path: Path) -> None:
    """ONNX, the record among its metadata."""
    save_onnx(job.plan.program(), path, job.record.to_strings())


def write_openvino(job: Job, path: Path) -> None:
    """OpenVINO IR: `path` (.xml) and its weights beside it (.bin); of 16 bits with bf16, of 8 with int8."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        graph = Path(folder, "model.onnx")
        save_onnx(job.plan.program(), graph)
        onnx_to_openvino(graph, job, path)


def onnx_to_openvino(graph: Path, job: Job, path: Path) -> None:
    """By way of ONNX: one graph for both formats, and a conversion several times faster than torch's frontend.

    Read by the runtime itself: `openvino.convert_model` gives the same and takes longer.
    """
    core = openvino_core()
    model: Any = core.read_model(graph)
    if job.record.dtype == "int8":
        model = quantised(model, job.samples, batch=job.record.batch or 1, transformer=job.transformer)
    if job.photo is not None:
        photo = graph.with_name("photo.onnx")
        save_onnx(job.photo.program(), photo)
        model = _chained(core.read_model(photo), model)
    for key, value in job.record.to_strings().items():
        model.set_rt_info(value, key.split("."))
    unreported("openvino").save_model(model, path, compress_to_fp16=job.record.dtype == "bf16")
    _tie(path)


def _tie(path: Path) -> None:
    """Write into the .xml what its .bin must be: of two files, one may be replaced by another model's."""
    tree = ET.parse(path)
    record = tree.find(f"rt_info/{PREFIX.rstrip('.')}")
    assert record is not None, "onnx_to_openvino has set entries"
    ET.SubElement(record, WEIGHTS_SHA256).set("value", sha256(path.with_suffix(".bin")))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _chained(photo: Any, model: Any) -> Any:
    """Photo -> model -> probabilities: the preprocessing stays in f32 where the model was quantised."""
    ov = unreported("openvino")
    image = photo.get_results()[0].input_value(0)
    for target in model.get_parameters()[0].output(0).get_target_inputs():
        target.replace_source_output(image)
    logits = model.get_results()[0].input_value(0)
    answer = ov.opset13.result(ov.opset13.softmax(logits, axis=1))
    make: Any = ov.Model
    chained = make([answer], photo.get_parameters(), "vertebra")
    chained.outputs[0].set_names({"answer"})
    return chained


def write_pt2(job: Job, path: Path) -> None:
    """`torch.export`'s archive, the record among its extra files."""
    with quiet():
        extra: dict[str, Any] = {RECORD_FILE: json.dumps(job.record.to_strings())}
        whole = io.BytesIO()  # on a full disk, torch's own writer ends the process
        torch.export.save(job.plan.program(), whole, extra_files=extra)
    path.write_bytes(whole.getbuffer())


def write_aoti(job: Job, path: Path) -> None:
    """AOTInductor's package: machine code for this kind of processor. Needs a C++ compiler here, not where it runs."""
    if compiler() is None:
        raise VertebraError(
            "an AOTInductor package needs a C++ compiler, and neither g++ nor clang++ nor $CXX is on the PATH; install"
            " one, or export as pt2"
        )
    with quiet(), torch.no_grad():
        aoti().aoti_compile_and_package(job.plan.program(), package_path=str(path), inductor_configs={"freezing": True})
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{RECORD_FILE}", json.dumps(job.record.to_strings()))


FORMATS = {
    "onnx": Format(write_onnx, ".onnx", ("f32",), ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(
        write_openvino, ".xml", ("f32", "bf16", "int8"), ("openvino", "onnx", "onnxscript", "nncf"), (".bin",)
    ),
    "pt2": Format(write_pt2, ".pt2", ("f32", "bf16")),
    "aoti": Format(write_aoti, ".pt2", ("f32", "bf16")),
}
