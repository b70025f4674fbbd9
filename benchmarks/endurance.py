"""Runs that are killed and disks that are full: what is left, and whether the run goes on to the very same weights.

    python benchmarks/endurance.py [--quick] [--seed N]

Kills: a run on the processor (two worker processes, RandAugment, mixup, CutMix, random erasing, drop path, averaged
weights) is killed with all its processes (`kill -9`) at random moments, between its start and its end, some of its
resumptions too, and goes on with `--resume auto`. Bar: 20 results of 20 are bit-identical with the run never killed:
weights, average, optimiser, generators, model file, metrics.csv (but for the images a second) and every other file.

Full disk: a small tmpfs of its own (Linux; a user namespace where one is not root) is filled just before each kind of
file that a run writes. Bar: one line names the disk and what to do, the checkpoint before it is whole, no half of a
file is left, and once there is room, `--resume auto` goes on to the same bits.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep
from PIL import Image
from safetensors import safe_open

from vertebra.engine import checkpoint
from vertebra.engine.config import RunConfig
from vertebra.engine.settings import as_yaml, with_settings
from vertebra.hub.pretrained import METADATA_KEY

SETTINGS = (
    "epochs=3",
    "data.batch_size=16",
    "data.image_size=32",
    "data.workers=2",
    "model.drop_rate=0.1",
    "augment.auto_augment=rand-m9-mstd0.5-inc1",
    "augment.mixup=0.4",
    "augment.cutmix=1.0",
    "augment.re_prob=0.5",
    "loss.smoothing=0.1",
    "ema.decay=0.99",
    "schedule.warmup_epochs=0.5",
    "device=cpu",
    "trackers=[tensorboard]",
)
MODELS = {
    "dla46_c": ("model.name=dla46_c",),
    "deit": (
        "model.name=deit_tiny_patch16_224",
        "model.options={depth: 2, embed_dim: 96}",
        "model.drop_path_rate=0.2",
    ),
}
"""With batch norm's running statistics and without; the second one draws drop path."""
WRITERS = ("split.csv", "checkpoint", "metrics.csv", "model.safetensors", "TensorBoard", "TensorBoard's start")
SAVE_EVERY = (0.0, 0.25, 600.0)
"""Seconds: after every update (half of a run's time is then writing), now and then, and at the end of epochs alone."""

AIMED = 1 / 3
"""Share of the kills that wait for the next moment in which a file is half written."""
TRAINING = 3 / 4
"""Share of the kills after the start-up, which takes longer than this training does."""


def make_photos(root: Path, each: int = 40) -> Path:
    """Four classes of noise, each with a colour of its own."""
    numbers = np.random.default_rng(7)
    for label in range(4):
        (root / f"class{label}").mkdir(parents=True)
        for i in range(each):
            levels = numbers.integers(0, 160, (44, 40, 3))
            levels[..., label % 3] += 90 if label < 3 else 20
            Image.fromarray(levels.astype(np.uint8)).save(root / f"class{label}" / f"{i:02}.png")
    return root


def command(photos: Path, model: str, out: Path, save_every: float = 0.0) -> list[str]:
    """As a user would type it, but for the settings, which come from a file."""
    config = with_settings(
        RunConfig(), [*SETTINGS, *MODELS[model], f"data.source={photos}", f"save_every={save_every}"]
    )
    file = photos.parent / f"{model}-{save_every}.yaml"
    file.write_text(as_yaml(config))
    return ["train", "--config", str(file), "--out", str(out), "--resume", "auto"]


def run(arguments: list[str], *program: str) -> subprocess.CompletedProcess[str]:
    """To its end."""
    call = [sys.executable, *(program or ("-m", "vertebra")), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=900)


# What is compared.


def content(out: Path) -> dict[str, Any]:
    """All that a run leaves and that is to be the same again; what depends on the clock is taken out."""
    paths = checkpoint.all_in(out)
    last = checkpoint.load(paths[-1])
    last["state"].pop("seconds")
    for row in last["state"]["metrics"]:
        row.pop("images_per_s")
    last["config"].pop("save_every")
    last.pop("config_hash")
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    for row in rows:
        row.pop("images_per_s")
    files = {name: (out / name).read_bytes() for name in ("split.csv", "labels.txt", "config.json", "validation.json")}
    with safe_open(out / "model.safetensors", framework="pt") as file:  # whose header has no fixed order
        about = json.loads(file.metadata()[METADATA_KEY])
        about["training"]["epoch"].pop("images_per_s")
        about["training"]["config"].pop("save_every")
        model = {"metadata": about, **{key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
    return {"newest": paths[-1].name, "last": last, "metrics.csv": rows, "model.safetensors": model, **files}


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two contents differ first, to the bit; empty where they do not."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
        return "" if same else f"{where} ({int((a != b).sum())} of {a.numel()} values)"
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((d for key in a if (d := difference(a[key], b[key], f"{where}/{key}"))), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} items"
        return next((d for i, x in enumerate(a) if (d := difference(x, b[i], f"{where}/{i}"))), "")
    return "" if a == b else f"{where}: {a!r:.60} and {b!r:.60}"


def halves(out: Path, *, running: bool = False) -> list[str]:
    """Files that are no whole ones; the lock of a run that is `running` is none of them."""
    found = [*out.glob(".*"), *(out / checkpoint.FOLDER).glob(".*")]
    return sorted(str(path.relative_to(out)) for path in found if not running or path.name != ".running")


def place(out: Path) -> str:
    """Where the newest checkpoint stands."""
    paths = checkpoint.all_in(out)
    if not paths:
        return "nothing saved yet"
    state = checkpoint.load(paths[-1])["state"]
    return f"epoch {state['epoch'] + 1} step {state['step']:>2}"


# Kills.


@dataclass
class Tally:
    """What was found."""

    lines: list[str] = field(default_factory=list[str])
    kills: int = 0
    in_a_write: int = 0
    starting: int = 0
    inside: int = 0
    same: int = 0
    results: int = 0

    def say(self, line: str) -> None:
        """Print and keep."""
        print(line, flush=True)
        self.lines.append(line)


def trains(out: Path, process: int) -> bool:
    """Whether that process is past its start: TensorBoard's file, which bears its number, is the last thing before."""
    return any((out / "vertebra").glob(f"events.*.{process}.*"))


def kill_after(call: list[str], out: Path, seconds: float, *, training: bool, aimed: bool) -> bool:
    """Start the run and kill all its processes after that time; False where it came to its end before.

    `training`: the time begins when training does, else with the process. `aimed`: once it is over, not at once, but as
    soon as a file is half written.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "vertebra", *call],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while training and process.poll() is None and not trains(out, process.pid):
            time.sleep(0.005)
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        while aimed and process.poll() is None and not halves(out, running=True):
            pass
    finally:
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return alive


def victim(photos: Path, out: Path, model: str, spent: dict[str, float], dice: random.Random, tally: Tally) -> None:
    """One run, killed once to four times, and then let go on to its end."""
    wanted, done, tries = dice.choice((1, 1, 2, 2, 3, 4)), 0, 0
    startup = spent["start-up"]
    while done < wanted and tries < 12:
        tries += 1
        every = dice.choice(SAVE_EVERY)
        before = place(out)
        training, aimed = dice.random() < TRAINING, dice.random() < AIMED
        moment = dice.uniform(0.0, 0.9) * (spent[model] - startup if training else startup)
        call = command(photos, model, out, every)
        if not kill_after(call, out, moment, training=training, aimed=aimed):
            break  # it came to its end: nothing left to kill
        done += 1
        tally.kills += 1
        left, now = halves(out, running=True) if out.exists() else [], place(out)
        tally.in_a_write += bool(left)
        tally.starting += now == before
        tally.inside += "step" in now and not now.endswith("step  0")
        into = f"{moment:5.2f} s into its {'training' if training else 'start-up'}"
        tally.say(
            f"kill {tally.kills:>2}  {model:<7} {into:<24}  from: {before:<17}  "
            f"newest: {now:<17}  saves every {every:g} s{'  in the middle of ' + left[0] if left else ''}"
        )
    if done:
        return
    shutil.rmtree(out)
    victim(photos, out, model, spent, dice, tally)


def kills(folder: Path, photos: Path, count: int, dice: random.Random, tally: Tally) -> dict[str, Any]:
    """`count` runs that are killed; returns the contents of those that were not."""
    start = time.monotonic()
    run([], "-c", "import vertebra.engine.train")
    wanted, spent = dict[str, Any](), {"start-up": time.monotonic() - start}
    for model in MODELS:
        out, start = folder / f"whole-{model}", time.monotonic()
        done = run(command(photos, model, out))
        assert done.returncode == 0, done.stderr
        wanted[model], spent[model] = content(out), time.monotonic() - start
        tally.say(f"never killed  {model:<7} {spent[model]:.1f} s, {wanted[model]['newest']}")
    for number in range(count):
        model = list(MODELS)[number % len(MODELS)]
        out = folder / f"killed-{number}"
        victim(photos, out, model, spent, dice, tally)
        last = run(command(photos, model, out, dice.choice(SAVE_EVERY)))
        differs = last.stderr if last.returncode else difference(wanted[model], content(out)) or ", ".join(halves(out))
        resumed = next((line for line in last.stdout.splitlines() if line.startswith("resumed")), "started anew")
        tally.results += 1
        tally.same += not differs
        tally.say(f"result {tally.results:>2}  {model:<7} {' '.join(resumed.split())}: {differs or 'bit-identical'}")
        shutil.rmtree(out)
    return wanted


# Full disks.

DRIVER = """
import sys
from pathlib import Path
from accelerate import Accelerator
from vertebra.engine import checkpoint, outdir

writer, disk, later = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def fill(leave):
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass
        file.truncate(max(0, file.tell() - leave))

def before(owner, name, chosen, leave=0):
    original, calls = getattr(owner, name), []
    def wrapped(*args, **more):
        calls.extend([1] * chosen(*args))
        if len(calls) == later:
            fill(leave)
        return original(*args, **more)
    setattr(owner, name, wrapped)

if writer == "checkpoint":
    before(checkpoint, "write_whole", lambda path, _: path.suffix == ".pt", 100_000)
elif writer == "model.safetensors":
    before(outdir, "save_model", lambda *_: True, 100_000)
elif writer == "TensorBoard":
    log = Accelerator.log  # more than the room that is left in the file's last page
    Accelerator.log = lambda self, row, step: log(self, {**row, **{f"x{i}": 0.0 for i in range(500)}}, step=step)
    before(Accelerator, "log", lambda *_: True)
elif writer == "TensorBoard's start":
    before(Accelerator, "init_trackers", lambda *_: True)
else:
    before(outdir, "write_whole", lambda path, _: path.name == writer)

sys.argv[1:] = sys.argv[4:]
import runpy
runpy.run_module("vertebra", run_name="__main__", alter_sys=True)
"""
"""The command, but for a disk that is filled just before the named writer's n-th file."""


def verdict(done: subprocess.CompletedProcess[str], out: Path, disk: Path) -> str:
    """What is wrong with how a run ended on a full disk; empty where nothing is."""
    error = done.stderr.strip()
    if done.returncode != 1 or error.count("\n") or "Traceback" in error:
        return f"status {done.returncode}: {error[-2000:]}"
    missing = [
        w for w in ("No space left on device", f"the disk at {disk} has", "make room", "--resume") if w not in error
    ]
    if missing:
        return f"says nothing of {missing}: {error}"
    left = halves(out) if out.exists() else []
    for path in checkpoint.all_in(out):
        checkpoint.load(path)
    return f"left: {', '.join(left)}" if left else ""


def full_disks(disk: Path, photos: Path, wanted: dict[str, Any], tally: Tally) -> dict[str, bool]:
    """Each writer in turn; runs in a mount namespace of its own."""
    found = dict[str, bool]()
    model, driver = "dla46_c", photos.parent / "driver.py"
    driver.write_text(DRIVER)
    disk.mkdir()
    for writer in (*WRITERS, "natural"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
        out = disk / "run"
        call = command(photos, model, out, 0.0)
        if writer == "natural":  # the third checkpoint finds no room beside two
            subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
            done = run(call)
        else:
            later = {"checkpoint": "8", "metrics.csv": "2", "TensorBoard": "2"}.get(writer, "1")
            done = run([writer, str(disk), later, *call], str(driver))
        wrong = verdict(done, out, disk)
        kept, said = place(out), done.stderr.strip().replace(str(disk), "DISK")
        (disk / "ballast").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = run(call)
        wrong = wrong or again.stderr.strip() or difference(wanted[model], content(out)) or ", ".join(halves(out))
        found[writer] = not wrong
        tally.say(f"full disk at {writer:<19} kept: {kept:<17}  {wrong or 'went on, bit-identical'}\n    {said[-400:]}")
        subprocess.run(["umount", str(disk)], check=True)
    return found


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description="Kill runs and fill disks.")
    parser.add_argument("--quick", action="store_true", help="4 results instead of 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--disks", type=Path, help=argparse.SUPPRESS)  # what this command calls itself with
    chosen = parser.parse_args()
    tally = Tally()
    if chosen.disks:
        wanted = {"dla46_c": content(chosen.disks / "whole-dla46_c")}
        found = full_disks(chosen.disks / "disk", chosen.disks / "photos", wanted, tally)
        (chosen.disks / "found.json").write_text(json.dumps({"found": found, "lines": tally.lines}))
        return
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        photos = make_photos(folder / "photos")
        start = time.monotonic()
        kills(folder, photos, 4 if chosen.quick else 20, random.Random(chosen.seed), tally)
        tally.say(
            f"{tally.same} of {tally.results} results bit-identical after {tally.kills} kills (seed {chosen.seed}; "
            f"{tally.inside} left inside an epoch, {tally.in_a_write} in the middle of a write, "
            f"{tally.starting} with nothing new saved), {time.monotonic() - start:.0f} s"
        )
        me = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, __file__, "--disks", name]
        subprocess.run(me, check=True)
        disks = json.loads((folder / "found.json").read_text())
        tally.lines += disks["lines"]
    good = sum(disks["found"].values())
    tally.say(f"full disk: {good} of {len(disks['found'])} clear, whole and bit-identical afterwards")
    if not chosen.quick:
        figures = {"kills": tally.kills, "results": tally.results, "same": tally.same, "disks": disks["found"]}
        keep("endurance", tally.lines, figures)
    if tally.same < tally.results or good < len(disks["found"]):
        sys.exit("endurance: not all came through; see above")


if __name__ == "__main__":
    main()
