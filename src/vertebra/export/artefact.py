"""An exported file as a model: `load(path)` runs it by its own runtime and knows its labels and preprocessing.

b batch, c channels, h w height and width in pixels, k classes.
"""

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vertebra.export.record import PREFIX, Record
from vertebra.runtime.sessions import Requests, onnx_session
from vertebra.runtime.unreported import openvino_core
from vertebra.spec import EXPORTED_SUFFIXES, VertebraError, parse_object, value_as
from vertebra.spec.files import sha256

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Array = NDArray[Any]
Run = Callable[[Array], Array]

SUFFIXES = EXPORTED_SUFFIXES
RECORD_FILE = "vertebra.json"
"""Name of the record among a .pt2 archive's extra files."""
WEIGHTS_SHA256 = "bin_sha256"
"""Beside the record in an OpenVINO .xml: of its .bin."""
TINY = 1e-30
"""Probabilities below this count as it: their logarithm must stay finite."""


def is_artefact(path: str | Path) -> bool:
    """Whether a command's `--model` means an exported file, by its name; whether it is there is `load`'s to say."""
    return Path(path).suffix.lower() in SUFFIXES


def load(path: str | Path) -> "Artefact":
    """An exported file, ready to run. Raises `VertebraError` where it is none of ours or its runtime is missing.

    ONNX and OpenVINO files are data. A .pt2 is a program, and only its own record says of which kind: load it from
    those you trust. An AOTInductor package runs what its author compiled. `torch.export`'s is refused where it holds
    pickles or machine code, but its graph may still name any function of torch's.
    """
    import torch

    record, run = open_file(path, torch.get_num_threads())
    return Artefact(record, run, Path(path))


class Artefact:
    """Callable on (b, c, h, w) like the model it was exported from; `labels` and `pretrained_cfg` come with it."""

    def __init__(self, record: Record, run: Run, path: Path | None = None) -> None:
        self.record, self.path = record, path
        self._run = run
        self.pretrained_cfg: dict[str, Any] = {**record.model["pretrained_cfg"], **record.preprocess}
        for key in ("input_size", "mean", "std"):
            self.pretrained_cfg[key] = tuple(record.preprocess[key])
        if record.model.get("multi_label"):
            self.pretrained_cfg["multi_label"] = True
        self.default_cfg = self.pretrained_cfg
        self.labels = None if record.labels is None else tuple(record.labels)
        self.num_classes = int(record.model["num_classes"])
        self.in_chans = int(record.preprocess["input_size"][0])
        self.with_preprocess = record.with_preprocess
        """True: it takes photos, as `transform` makes them (0..255, any size), and answers log-probabilities."""
        self.training = False

    def __reduce__(self) -> tuple[Any, ...]:
        """By its file, which another process must see, too."""
        if self.path is None:
            raise VertebraError("an exported file is pickled by its path, and this one was opened without; use `load`")
        return load, (self.path.absolute(),)

    def __call__(self, image: "Tensor") -> "Tensor":
        """(b, c, h, w) -> (b, k) logits. Raises `VertebraError` for a shape that the file was not exported for.

        Where the file holds one batch size, more images go in several runs and fewer are filled up.
        """
        import torch

        self.check(tuple(image.shape))
        batch = self.record.batch or len(image)
        if len(image) == batch:
            return self._answer(image)
        filled = torch.cat((image, image[-1:].expand(-len(image) % batch, *image.shape[1:])))
        return torch.cat([self._answer(part) for part in filled.split(batch)])[: len(image)]

    def _answer(self, image: "Tensor") -> "Tensor":
        import torch

        if self.with_preprocess:
            photo = image.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            answer = self._run(photo.cpu().numpy())
            return torch.from_numpy(np.log(np.maximum(answer, TINY)))
        answer = self._run(image.to("cpu", torch.float32).contiguous().numpy())
        return torch.from_numpy(np.array(answer))

    @property
    def transform(self) -> "Callable[[Image.Image], Tensor] | None":
        """What `Predictor` must use in the place of the checkpoint's own: None, or for photos only their bytes."""
        if not self.with_preprocess:
            return None
        from torchvision.transforms.v2 import functional

        return functional.pil_to_tensor

    def eval(self) -> "Artefact":
        """Itself: an exported file cannot train."""
        return self

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise where a (b, c, h, w) input does not fit."""
        multiple = self.record.size_multiple
        channels, *size = self.record.preprocess["input_size"]
        if len(shape) != 4 or shape[1] != channels:
            raise VertebraError(f"an image batch of shape {shape}: this file takes (b, {channels}, h, w)")
        if self.with_preprocess:
            return
        if multiple is None and list(shape[2:]) != size:
            raise VertebraError(
                f"images of {shape[2]}x{shape[3]}: this file takes {size[0]}x{size[1]}; export it with --dynamic-size"
            )
        if multiple is not None and any(n % multiple or n < 2 * multiple for n in shape[2:]):
            raise VertebraError(
                f"images of {shape[2]}x{shape[3]}: this file takes multiples of {multiple} from {2 * multiple} on"
            )


def read_record(path: str | Path) -> Record:
    """What a file says of itself. Raises `VertebraError`."""
    return open_file(path)[0]


def open_file(path: str | Path, threads: int = 0) -> tuple[Record, Run]:
    """A file's record, and what runs it on arrays; `threads` of ONNX Runtime, 0: one a core. Raises `VertebraError`."""
    path = Path(path)
    if not path.is_file():
        raise VertebraError(f"no file at {path}")
    openers: dict[str, Callable[[Path], tuple[Record, Run]]] = {
        ".onnx": partial(_open_onnx, threads=threads),
        ".xml": _open_openvino,
        ".pt2": _open_pt2,
    }
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise VertebraError(f"{path}: exported files end in {', '.join(SUFFIXES)}")
    try:
        return opener(path)
    except ModuleNotFoundError as error:
        raise VertebraError(f"{path} needs the package {error.name}; pip install 'vertebra[fast]'") from error


def _open_onnx(path: Path, threads: int) -> tuple[Record, Run]:
    try:
        session = onnx_session(path, threads)
    except RuntimeError as error:
        raise VertebraError(f"{path} cannot be read: {error}") from error
    record = Record.from_strings(session.get_modelmeta().custom_metadata_map, where=str(path))
    name = session.get_inputs()[0].name
    return record, lambda x: session.run(None, {name: x})[0]


def _open_openvino(path: Path) -> tuple[Record, Run]:
    core = openvino_core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VertebraError(f"{path} cannot be read: {reason}") from error
    paths = {name: name.split(".") for name in Record.entries()}
    entries = {name: _text(model, p, path) for name, p in paths.items() if model.has_rt_info(p)}
    record = Record.from_strings(entries, where=str(path))
    tie = [PREFIX.rstrip("."), WEIGHTS_SHA256]
    if model.has_rt_info(tie) and _text(model, tie, path) != sha256(path.with_suffix(".bin")):
        raise VertebraError(
            f"{path} and {path.with_suffix('.bin').name} do not belong together: one of them was replaced; export the"
            " model anew"
        )
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # Named, because OpenVINO itself takes bf16 wherever the processor has it, for f32 files too.
    precision = "bf16" if record.dtype == "bf16" and native else "f32"
    compiled: Any = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return record, Requests(compiled)


def _text(model: Any, entry: list[str], path: Path) -> str:
    try:
        return model.get_rt_info(entry).astype(str)
    except (RuntimeError, TypeError) as error:  # a node with nodes below it
        raise VertebraError(f"{path}: its record's {'.'.join(entry)} is no text; export it anew") from error


def _open_pt2(path: Path) -> tuple[Record, Run]:
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = next((n for n in names if n.endswith(f"/extra/{RECORD_FILE}")), None)
            text = archive.read(found) if found else b"{}"
    # What a damaged member raises depends on where it is damaged; encrypted ones are a RuntimeError.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise VertebraError(f"{path} cannot be read: it is no archive, or not a whole one") from error
    entries = parse_object(text, f"{path}: its record")
    record = Record.from_strings(value_as(dict[str, str], entries, RECORD_FILE, str(path)), where=str(path))
    if record.format == "aoti":
        from vertebra.runtime.private import aoti

        call: Any = aoti().aoti_load_package(str(path))
    else:
        from vertebra.export.archive import read_program

        # The file's own guards are code, which would be run here; and they forbid a ViT of any size its native one.
        call = read_program(path).module(check_guards=False)

    def run(x: Array) -> Array:
        with torch.inference_mode():
            return call(torch.from_numpy(x)).numpy()

    return record, run
