"""A foreign checkpoint -> one safetensors file of ours that carries its whole record, checked by running it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vertebra.hub.factory import describe, load_model
from vertebra.hub.fetch import folder_weights
from vertebra.hub.fit import LoadReport
from vertebra.hub.pretrained import record_in
from vertebra.hub.save import halved, save_model
from vertebra.hub.state import read_file
from vertebra.models.backbone import Backbone
from vertebra.spec import WeightsError, files


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a checkpoint."""

    out: Path
    architecture: str
    num_classes: int
    parameters: int
    wrapper: str
    """Keys of the training script's file around the state dict, `''` where there were none."""
    report: LoadReport
    source_sha256: str


def convert(
    checkpoint: str | Path, model_name: str | None, out: str | Path, *, half: bool = False, force: bool = False
) -> Conversion:
    """Write `checkpoint` as `out` (.safetensors), adapted to `model_name`; None: the file says what it is for.

    `half` writes kernels and matrices in float16. What else the file's record says goes along. `force`: a file that is
    there is written over; `checkpoint` itself never is.

    Differences that the family does not declare raise `WeightsError`, by name. The written file is loaded afresh and
    must hold the same tensors and answer as the model it was written from; else nothing is left at `out`.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if checkpoint.is_dir():  # a run's, or a repository's: its config.json says what it is
        model_name, checkpoint = model_name or str(checkpoint.absolute()), folder_weights(checkpoint)
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: must end in .safetensors")
    files.refuse_to_overwrite(out, force=force, source=checkpoint)
    _, metadata = read_file(checkpoint)
    model = (load_model(checkpoint) if model_name is None else load_model(model_name, weights=checkpoint)).eval()
    if half:
        _round(model)
    digest = files.sha256(checkpoint)
    record = {k: v for k, v in record_in(metadata, checkpoint).items() if k not in describe(model)}
    source = {"file": checkpoint.name, "sha256": digest}
    try:
        with files.beside(out) as folder:
            written = save_model(model, folder / out.name, extra={**record, "converted_from": source}, half=half)
            _verify(model, written, out)
            files.put([written], out.parent)
    except OSError as error:
        raise WeightsError(f"cannot write {out}: {error.strerror or error}; nothing was changed") from error
    arch = str(model.pretrained_cfg["architecture"])
    count = sum(p.numel() for p in model.parameters())
    wrapper = metadata.get("wrapper", "")
    return Conversion(out, arch, model.num_classes, count, wrapper, model.load_report, digest)


@torch.no_grad()
def _round(model: Backbone) -> None:
    """To what float16 holds."""
    for parameter in model.parameters():
        parameter.copy_(halved(parameter))


def _verify(model: Backbone, written: Path, out: Path) -> None:
    again = load_model(written).eval()
    size = model.pretrained_cfg["input_size"][-2:]
    image = torch.randn(1, model.in_chans, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = model(image), again(image)
    ours, theirs = model.state_dict(), again.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Not bit for bit: matrix products round differently where a file's mapping is aligned differently in memory.
    if not same or not torch.allclose(before, after, rtol=1e-4, atol=1e-5 * float(before.abs().max())):
        raise WeightsError(f"{out} would not answer as what it was written from; nothing was kept")
    if not bool(torch.isfinite(before).all()):
        raise WeightsError(
            "the converted model answers with NaN or infinity; is the checkpoint whole? nothing was kept"
        )
