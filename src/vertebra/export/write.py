"""`export_model`: plan, write beside the target, check in a new process, put in place. All of it or nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

import vertebra
from vertebra.data import create_transform, decode, labels_for, resolve_model_data_config
from vertebra.export.formats import FORMATS, Job
from vertebra.export.graph import DTYPES, any_size, photo_plan, plan, size_multiple
from vertebra.export.record import Record
from vertebra.export.verify import Case, in_new_process
from vertebra.hub.factory import create_model, describe
from vertebra.hub.save import as_os_error
from vertebra.models.backbone import Backbone
from vertebra.runtime.cache import weights_hash
from vertebra.runtime.graph import OPSET
from vertebra.runtime.int8 import check_samples
from vertebra.runtime.machine import missing
from vertebra.spec import UnknownNameError, VertebraError, did_you_mean, files

Sample = str | Path | Image.Image
BATCHES = (1, 3, 8)
"""Batches that an artefact of any batch is checked with; the last is larger where there are more images."""
CALIBRATE, CHECK = 300, 8
"""The most samples read, and the most of them that are part of the check."""
SIDE = 640
"""The most pixels a side of a photo that the check resizes: batches of them all lie in memory at once."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how near its answers lie to the model's."""

    out: Path
    record: Record
    cases: tuple[Case, ...]
    bytes: int
    """Of all files."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for, as `export_model` says."""

    format: str
    dtype: str
    dynamic_size: bool
    with_preprocess: bool
    batch: int | None


@torch.no_grad()
def export_model(
    model: Backbone | str,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word that users of exporters know
    dtype: str = "f32",
    dynamic_size: bool = False,
    with_preprocess: bool = False,
    batch: int | None = None,
    samples: Sequence[Sample] = (),
    labels: Sequence[str] | None = None,
    force: bool = False,
) -> Exported:
    """Write `model` (a name: pretrained) to `out`, for OpenVINO with a .bin beside it.

    What is there is written over with `force` alone, and stays until the new file is proven.

    `format`: onnx, openvino, pt2 or aoti; None: by `out`'s suffix. `dtype`: f32, bf16 (openvino: 16-bit weights, bf16
    arithmetic where the processor has it), int8 (openvino). `batch` None: any. `dynamic_size`: images of any multiple
    of the patch (CNN: of the whole reduction). `with_preprocess`: uint8 photos (b, h, w, 3) of any size in,
    probabilities out. `samples`: photos that int8 is calibrated on, and that the check uses beside generated images;
    without them, where the classes have names, it takes scikit-image's cat if that is installed.

    Raises `UnknownNameError` for a format or type that does not exist, `VertebraError` for what cannot be combined, or
    where the written file does not answer as the model; then nothing is left of it.
    """
    out = Path(out)
    options = Options(format_of(format, out), dtype, dynamic_size, with_preprocess, batch)
    refuse_to_overwrite(out, options.format, force=force)
    built = create_model(model, pretrained=True) if isinstance(model, str) else model
    _check(built, options, samples)
    refuse_to_overwrite(out, options.format, force=force, source=built.pretrained_cfg.get("file"))
    training, built = built.training, built.eval()
    try:
        record = record_of(built, options, labels)
        with files.beside(out) as folder:
            return _write(built, options, record, samples, folder, out)
    except (OSError, SafetensorError) as error:
        reason = as_os_error(error)
        raise VertebraError(f"cannot write {out}: {reason.strerror or reason}; nothing was changed") from reason
    finally:
        built.train(training)


def _write(
    model: Backbone, options: Options, record: Record, samples: Sequence[Sample], folder: Path, out: Path
) -> Exported:
    written, reference = folder / "new" / out.name, folder / "reference.safetensors"
    written.parent.mkdir()
    FORMATS[options.format].write(_job(model, options, record, spread(samples, CALIBRATE)), written)
    shown = spread(samples, CHECK) or (_installed_photo() if record.labels else [])
    _save_reference(model, options, [*generated(), *shown], reference)
    try:
        cases = in_new_process(written, reference, record)
    except VertebraError as error:
        raise VertebraError(str(error).replace(str(written), str(out))) from error
    made = sorted(written.parent.iterdir(), key=lambda file: file == written)  # weights first, what names them last
    size = sum(file.stat().st_size for file in made)
    files.put(made, out.parent)
    return Exported(out, record, tuple(cases), size)


def refuse_to_overwrite(out: Path, kind: str, *, force: bool, source: str | None = None) -> None:
    """Raise `VertebraError` where a file of that format would go over one that is there."""
    for suffix in (out.suffix, *FORMATS[kind].beside):
        files.refuse_to_overwrite(out.with_suffix(suffix), force=force, source=source)


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, evenly: the first of a sorted folder of class folders are all of one class."""
    count = min(most, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


def format_of(name: str | None, out: Path) -> str:
    """The format that is named, or meant by the suffix of `out`. Raises where there is none, or the two differ."""
    by_suffix = {kind.suffix: key for key, kind in reversed(FORMATS.items())}  # .pt2: the graph, not machine code
    name = by_suffix.get(out.suffix) if name is None else name
    allowed = ", ".join(f"{key} ({kind.suffix})" for key, kind in FORMATS.items())
    if name is None:
        raise UnknownNameError(f"{out}: its suffix says no format; allowed: {allowed}")
    if name not in FORMATS:
        raise UnknownNameError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}; allowed: {allowed}")
    if out.suffix != FORMATS[name].suffix:
        raise VertebraError(f"{out}: a file of format {name} must end in {FORMATS[name].suffix}")
    return name


def _check(model: object, options: Options, samples: Sequence[Sample]) -> None:
    kind = FORMATS[options.format]
    if not isinstance(model, Backbone):
        raise VertebraError(f"a {type(model).__name__} cannot be exported; give a model of vertebra's, or its name")
    if {p.dtype for p in model.parameters()} != {torch.float32} or next(model.parameters()).device.type != "cpu":
        raise VertebraError("give the model in float32 on the CPU; the file's own type is `dtype`")
    if options.dtype not in kind.dtypes:
        other = [key for key, k in FORMATS.items() if options.dtype in k.dtypes]
        hint = f"; {options.dtype} can be written as {', '.join(other)}" if other else ""
        error = VertebraError if other else UnknownNameError
        raise error(f"{options.format} files hold {', '.join(kind.dtypes)}, not {options.dtype!r}{hint}")
    if options.batch is not None and options.batch < 1:
        raise VertebraError(f"batch={options.batch}: give a whole number from 1 on, or None for any")
    _check_preprocess(model, options)
    _check_size(model, options)
    if options.dtype == "int8":
        check_samples(len(samples))
    if lacking := missing(*kind.needs):
        raise VertebraError(f"{options.format} needs {', '.join(lacking)}; pip install 'vertebra[fast]'")


def _check_preprocess(model: Backbone, options: Options) -> None:
    if not options.with_preprocess:
        return
    if options.dynamic_size:
        raise VertebraError("with_preprocess takes photos of any size already; leave dynamic_size out")
    if model.in_chans != 3:
        raise VertebraError(f"with_preprocess takes photos, and this model {model.in_chans} channels; leave it out")
    if model.num_classes < 2:
        raise VertebraError("with_preprocess ends in probabilities, and this model has no classes to share them among")
    if model.pretrained_cfg.get("multi_label"):
        raise VertebraError(
            "with_preprocess ends in a softmax, and this model answers each of its classes by itself; leave it out: "
            "the file then gives logits, whose sigmoids are the probabilities"
        )
    if options.format == "openvino" and options.dtype == "bf16":
        raise VertebraError(
            "OpenVINO would compute the resize's pixel positions in bf16, too, and miss them; use f32 or int8, or leave"
            " with_preprocess out"
        )


def _check_size(model: Backbone, options: Options) -> None:
    """A file of several sizes must take the one that its own preprocessing makes."""
    if not options.dynamic_size:
        return
    height, width = cast("tuple[int, int, int]", resolve_model_data_config(model)["input_size"])[-2:]
    step = size_multiple(model)
    if any(side % step or side < 2 * step for side in (height, width)):
        raise VertebraError(
            f"dynamic_size makes a file for multiples of {step} from {2 * step} on, and this model's own size is"
            f" {height}x{width}; leave it out"
        )


def record_of(model: Backbone, options: Options, labels: Sequence[str] | None = None) -> Record:
    """What travels inside the file. `labels` None: the checkpoint's own, where it has any."""
    described = describe(model)
    names = labels_for(model.num_classes, model.pretrained_cfg) if labels is None else tuple(labels)
    if names is not None and len(names) != model.num_classes:
        raise VertebraError(f"{len(names)} labels for a model of {model.num_classes} classes; give one a class")
    packages = ("torch", *FORMATS[options.format].needs)
    return Record(
        model=described,
        labels=None if names is None else list(names),
        preprocess=_preprocess(model),
        license=model.pretrained_cfg.get("license"),
        weights_sha256=weights_hash(model),
        format=options.format,
        dtype=options.dtype,
        with_preprocess=options.with_preprocess,
        batch=options.batch,
        size_multiple=size_multiple(model) if options.dynamic_size else None,
        opset=OPSET if options.format == "onnx" else None,
        versions={"vertebra": vertebra.__version__, **{name: _version(name) for name in packages}},
    )


def _preprocess(model: Backbone) -> dict[str, Any]:
    """The checkpoint's, for as many channels as this model takes."""
    found: dict[str, Any] = resolve_model_data_config(model)
    return {**found, "input_size": (model.in_chans, *found["input_size"][-2:])}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _job(model: Backbone, options: Options, record: Record, samples: Sequence[Sample]) -> Job:
    apart = options.with_preprocess and options.dtype == "int8"
    planned = plan(
        model,
        dtype=torch.float32 if options.format == "openvino" else DTYPES[options.dtype],
        with_preprocess=options.with_preprocess and not apart,
        dynamic_size=options.dynamic_size,
        batch=options.batch,
    )
    seen = _seen(model, samples) if options.dtype == "int8" else []
    return Job(planned, record, seen, photo_plan(model) if apart else None, transformer=not model.spatial)


def _seen(model: Backbone, samples: Sequence[Sample]) -> list[Tensor]:
    """As the model sees them, (c, h, w): decoded one at a time, because photos may be large."""
    transform = _transform(model)
    return [transform(_photo(sample)) for sample in samples]


def _transform(model: Backbone) -> Any:
    config: dict[str, Any] = resolve_model_data_config(model)
    return create_transform(**config, is_training=False)


def _photo(sample: Sample) -> Image.Image:
    return sample if isinstance(sample, Image.Image) else decode(sample)


def _installed_photo() -> list[Path]:
    """A cat, where the extra `demo` (scikit-image) is installed."""
    found = find_spec("skimage")
    path = None if found is None or found.origin is None else Path(found.origin).with_name("data") / "chelsea.png"
    return [path] if path is not None and path.is_file() else []


def generated() -> list[Image.Image]:
    """Pictures with what photos have: smooth areas, edges, fine grain; two sizes, always the same."""
    pictures = list[Image.Image]()
    for number, size in enumerate([(320, 400), (301, 270)]):
        random = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 6, 7, generator=random)
        scene = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
        scene[:, size[0] // 3 : size[0] // 2, size[1] // 4 : size[1] // 2] += (
            torch.rand(3, 1, 1, generator=random) - 0.5
        )
        scene += 0.06 * torch.randn(3, *size, generator=random)
        levels = scene.clamp(0, 1).mul(255).to(torch.uint8).permute(1, 2, 0).contiguous()
        pictures.append(Image.fromarray(levels.numpy()))
    return pictures


def _save_reference(model: Backbone, options: Options, photos: Sequence[Sample], path: Path) -> None:
    """Inputs and eager's f32 answers: each batch size, each further size where sizes may vary, each photo."""
    from safetensors.torch import save_file

    cases = _photo_cases(model, options, photos) if options.with_preprocess else _cases(model, options, photos)
    asked = any_size(model) if options.dynamic_size else model
    tensors: dict[str, Tensor] = {}
    for number, (image, normalised) in enumerate(cases):
        tensors[f"image.{number}"] = image.contiguous()
        tensors[f"answer.{number}"] = asked(normalised).contiguous()
    save_file(tensors, path)


def _cases(model: Backbone, options: Options, photos: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
    config: dict[str, Any] = resolve_model_data_config(model)
    channels, (height, width) = model.in_chans, config["input_size"][-2:]
    if channels == 3:
        seen = torch.stack(_seen(model, photos))
    else:
        seen = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    images = _batches(seen, options.batch)
    if options.dynamic_size:
        step = size_multiple(model)
        images += [torch.nn.functional.interpolate(images[0], (height + step, width + 2 * step))]
    return [(image, image) for image in images]


def _batches(images: Tensor, fixed: int | None) -> list[Tensor]:
    """Every image is in one of them at least."""
    if fixed is not None:
        return [_rows(part, fixed) for part in images.split(fixed)]
    return [_rows(images, count) for count in (*BATCHES[:-1], max(BATCHES[-1], len(images)))]


def _rows(images: Tensor, count: int) -> Tensor:
    """`count` images; where there are fewer, some are shifted."""
    made = [images[i % len(images)].roll(7 * (i // len(images)), dims=-1) for i in range(count)]
    return torch.stack(made)


def _photo_cases(model: Backbone, options: Options, photos: Sequence[Sample]) -> Iterator[tuple[Tensor, Tensor]]:
    """The expected answers go through Pillow and `create_transform`, not through the graph's own resize."""
    import numpy as np

    transform = _transform(model)
    batches = BATCHES if options.batch is None else (options.batch,)
    for number in range(max(len(photos), len(batches))):
        photo = _small(_photo(photos[number % len(photos)]))
        count = batches[number % len(batches)]
        turned = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else photo for i in range(count)]
        raw = torch.stack([torch.from_numpy(np.array(p)) for p in turned])
        yield raw, torch.stack([transform(p) for p in turned])


def _small(photo: Image.Image) -> Image.Image:
    """The photo itself, or a copy of at most `SIDE` pixels a side."""
    scale = SIDE / max(photo.size)
    if scale >= 1:
        return photo
    width, height = (max(1, round(pixels * scale)) for pixels in photo.size)
    return photo.resize((width, height))
