"""Settings from outside: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType

from vertebra.engine import config as module
from vertebra.engine.config import RunConfig
from vertebra.engine.learner import architecture
from vertebra.engine.plan import make_schedule
from vertebra.engine.recipes import RECIPES, about, recipe
from vertebra.engine.rules import check
from vertebra.engine.settings import (
    as_dict,
    as_yaml,
    config_hash,
    differences,
    from_dict,
    with_file,
    with_settings,
)
from vertebra.models.vit import VitConfig
from vertebra.spec import UnknownNameError, VertebraError


def test_values_are_read_as_their_fields_want_them() -> None:
    config = with_settings(
        RunConfig(),
        ["optim.lr=1e-3", "optim.options={betas: [0.9, 0.95]}", "ema.decay=0.99", "trackers=[]", "data.workers=null"],
    )
    assert config.optim.lr == 0.001
    assert config.optim.options == {"betas": [0.9, 0.95]}
    assert (config.ema.decay, config.trackers, config.data.workers) == (0.99, (), None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lrr=1", "unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
        ("lr=1", "unknown setting 'lr'; did you mean 'optim.lr'?"),
        ("augment.lr=1", "unknown setting 'augment.lr'; did you mean 'optim.lr'?"),
        ("zzz=1", "unknown setting 'zzz'; allowed: recipe, epochs"),
        ("optim=3", "optim is a group; set one of its fields, as optim.name"),
        ("schedule.kind=cosin", "schedule.kind='cosin' is not possible; did you mean 'cosine'?"),
        ("device=gpu", "device='gpu' is not possible; allowed: auto, cpu, cuda, mps"),
        ("epochs=1.5", "epochs=1.5: give a whole number"),
        ("epochs=true", "epochs=True: give a whole number"),
        ("ema.decay=much", "ema.decay='much': give a number"),
        ("augment.scale=[1]", r"augment.scale=\[1\]: give a list"),
        ("epochs", "write key=value"),
        ("epochs=[", "cannot be read as a value"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_hint(setting: str, message: str) -> None:
    with pytest.raises(VertebraError, match=message):
        with_settings(RunConfig(), [setting])


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "+1e-6", ".000001", "1.0e-6"])
def test_a_number_among_options_is_one_however_yaml_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(f"optim: {{options: {{eps: {text}}}}}")
    for config in (
        with_settings(RunConfig(), [f"optim.options.eps={text}"]),
        with_settings(RunConfig(), [f"optim.options={{eps: {text}}}"]),
        with_file(RunConfig(), tmp_path / "run.yaml"),
    ):
        assert config.optim.options == {"eps": 1e-6}
        assert from_dict(as_dict(config)) == config
    config = with_settings(RunConfig(), [f"model.options.init_values={text}", f"optim.options.betas=[0.9, {text}]"])
    assert config.model.options == {"init_values": 1e-6}
    assert config.optim.options == {"betas": [0.9, 1e-6]}
    words = with_settings(RunConfig(), ["model.options={global_pool: max, depths: [1, 2], ls: true, size: 3}"])
    assert words.model.options == {"global_pool": "max", "depths": [1, 2], "ls": True, "size": 3}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.options.eps=tiny", r"optim.options.eps='tiny': give a number, true or false, or \[a, b\]"),
        ("optim.options.betas=[0.9, much]", r"optim.options.betas='much': give a number"),
        ("optim.options={eps: {a: 1}}", r"optim.options.eps={'a': 1}: give a number"),
        ("model.options={when: 2026-11-27}", "model.options.when=.*: give a number, a word, true or false, or a list"),
    ],
)
def test_an_option_of_no_possible_type_is_named(setting: str, message: str) -> None:
    with pytest.raises(VertebraError, match=message):
        with_settings(RunConfig(), [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.source="], "no data"),
        (["model.name="], "no model"),
        (["model.name=dla43"], "dla34"),
        (["epochs=0"], "epochs=0"),
        (["schedule.warmup_epochs=10"], "fills all 10 epochs"),
        (["model.pretrained=true", "model.weights=x"], "both name a checkpoint"),
        (["freeze.depth=1"], "freeze.depth without a checkpoint"),
        (["freeze.thaw_every=1"], "thaws nothing"),
        (["distill.alpha=0.7"], "distill settings without a teacher"),
        (["distill.teacher=dla34", "distill.cache=x", "augment.mixup=0.2"], "no answers to mixed images"),
        (["data.start_size=128", "data.image_size=96"], "=128 grows to data.image_size=96: give 16 to data.image_size"),
        (["data.start_size=64"], "data.start_size=64 has no size to grow to; set data.image_size"),
        (["model.name=deit_tiny_patch16_224", "data.eval_size=256"], "takes images of one size, 224 x 224 pixels"),
        (
            ["model={name: deit_tiny_patch16_224, options: {img_size: 96}}", "data.eval_size=224"],
            "data.eval_size=224: deit_tiny_patch16_224 takes images of one size, 96 x 96 pixels; leave it out",
        ),
        (["model.name=vit_tiny_patch16_224", "data={start_size: 64, image_size: 96}"], "data.start_size=64: vit_tiny"),
        (["model.options.dept=3"], "unknown option 'dept'"),
        (["schedule.milestones=[6, 9]"], r"milestones=\(6.0, 9.0\) has no effect with schedule.kind=cosine; leave it"),
        (
            ["schedule={kind: one_cycle, min_lr: 1e-6}"],
            "schedule.min_lr=1e-06 has no effect with schedule.kind=one",
        ),
        (["schedule.min_lr=5"], "schedule.min_lr=5.0 lies above the rate that it ends, 0.001; give less"),
        (["augment={auto_augment: trivial, color_jitter: 0.4}"], "no effect beside augment.auto_augment=trivial"),
        (["augment.mix_off_epoch=3"], "augment.mix_off_epoch=3 has no effect as nothing is mixed"),
        (["augment={mixup: 0.2, switch_prob: 0.1}"], "no effect where mixup and cutmix are not both on"),
        (["augment.re_count=3"], "augment.re_count=3 has no effect with augment.re_prob=0"),
        (["distill={teacher: dla34, temperature: 3}"], "distill.temperature=3.0 has no effect with distill.kind=hard"),
        (["stop.rollbacks=1"], "stop.rollbacks=1 has no effect with stop.on_nan=stop"),
        (["stop={on_nan: rollback, rollbacks: -1}"], "stop.rollbacks=-1: give 0 or more"),
        (["save_every=nan"], "save_every=nan: give seconds"),
        (["model.drop_rate=1"], "model.drop_rate=1.0: give a share"),
        (["model.drop_path_rate=-0.1"], "model.drop_path_rate=-0.1: give a share"),
        (["data.image_size=0"], "data.image_size=0: give pixels above 0"),
        (["data.eval_size=-1"], "data.eval_size=-1: give pixels above 0"),
        (["data.crop_pct=0"], "data.crop_pct=0.0: give a share above 0"),
        (["distill={teacher: dla34, image_size: 0}"], "distill.image_size=0: give pixels above 0"),
        (["distill={teacher: dla34, temperature: 0}"], "distill.temperature=0.0: give a number above 0"),
        (["seed=-1"], "seed=-1: give a whole number from 0 to 4294967295"),
        (["seed=4294967296"], "seed=4294967296: give a whole number"),
        (["optim.clip_norm=0"], "optim.clip_norm=0.0: give a number above 0, or null for no bound"),
        (["optim.clip_norm=-1"], "optim.clip_norm=-1.0: give"),
        (["optim.clip_norm=nan"], "optim.clip_norm=nan: give"),
        (["optim.lr=nan"], "optim.lr=nan: give a rate above 0"),
        (["optim.weight_decay=-1"], "optim.weight_decay=-1.0: give 0 or more"),
        (["optim.layer_decay=0"], "optim.layer_decay=0.0: give a share above 0"),
        (["optim.name=adamx"], "unknown optimizer 'adamx'; did you mean 'adam"),
        (["optim.options.momentum=0.9"], "unknown option 'momentum' for optimizer 'adamw'"),
        (["optim.options.eps=[1, 2]"], r"optim.options.eps=\[1, 2\]: give a number"),
        (["optim.options.eps=true"], "optim.options.eps=True: give a number"),
        (
            ["model.options.in_chans=1"],
            "model.options.in_chans=1: photos are read as red, green",
        ),
        (["optim.options.amsgrad=1"], "optim.options.amsgrad=1: give true or false"),
        (["optim.options.betas=0.9"], r"optim.options.betas=0.9: give two numbers, as \[0.9, 0.999\]"),
        (["optim.options.eps=-1"], "optim.options={'eps': -1}: adamw: Invalid epsilon"),
        (["optim.name=sgd", "optim.options.dampening=0.5"], "sgd: Nesterov"),
        (["augment.auto_augment=rnd-m9"], "unknown augmentation 'rnd-m9'; did you mean 'rand'"),
        (["augment.scale=[1, 0.5]"], r"scale=\(1.0, 0.5\)"),
        (["augment.hflip=2"], "hflip=2.0: a probability"),
        (["augment.re_prob=-0.5"], "re_prob=-0.5: a probability"),
        (["augment.mixup=-1"], "mixup_alpha=-1.0"),
        (["augment={mixup: 1, switch_prob: 2}"], "switch_prob=2.0: give a share"),
        (["loss.target_threshold=0.2"], "loss 'cross_entropy' has no target_threshold"),
        (["loss.gamma=1"], "loss 'cross_entropy' has no gamma"),
        (["schedule.decay_epochs=0"], "schedule.decay_epochs=0.0: give a number above 0"),
        (["schedule.warmup_epochs=-1"], "schedule.warmup_epochs=-1.0: give 0 or more"),
        (["schedule.min_lr=-1"], "schedule.min_lr=-1.0: give 0 or more"),
        (["schedule.rise=1"], "schedule.rise=1.0: give a share between 0 and 1"),
        (["schedule={kind: multistep, milestones: [6, 3]}"], "give them in rising order"),
        (["device=cpu", "precision=fp16"], "fp16 does not train on a CPU"),
        (["precision=fp16"], "fp16 does not train on a CPU"),
        (["device=cuda"], "torch sees no GPU here"),
        (["device=mps"], "torch sees no Apple GPU here"),
        (["model.pretrained=true", "freeze={depth: 1, thaw_every: 0}"], "thaw_every=0.0: give epochs above 0"),
        (["stop.patience=-1"], "stop.patience=-1: give 0 or more"),
        (["data.workers=-1"], "data.workers=-1: give 0"),
        (["trackers=[foo]"], "unknown 'foo'; allowed: aim, tensorboard"),
        (["trackers=[tensorbord]"], "did you mean 'tensorboard'"),
        (["trackers=[tensorboard, wandb]"], "wandb is not installed; pip install wandb"),
        (["loss={kind: bce, target_threshold: 0.0, smoothing: 0.1}"], "lifts wrong classes above; give 0.05"),
        (["loss={kind: bce, target_threshold: 1.0}"], "from 0 to below 1"),
        (["schedule.kind=multistep"], "without milestones never falls"),
        (["schedule.kind=one_cycle", "schedule.warmup_epochs=1"], "warms up by itself"),
        (["ema.decay=1"], "ema.decay=1.0"),
    ],
)
def test_impossible_combinations_raise_before_anything_starts(
    settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    base = with_settings(RunConfig(), ["data.source=photos", "model.name=dla34"])
    check(base)
    with pytest.raises(VertebraError, match=message):
        check(with_settings(base, settings))


def test_a_threshold_above_what_is_smoothed_can_be_asked_for() -> None:
    base = with_settings(recipe("deit3"), ["data.source=photos"])
    assert (base.loss.smoothing, base.loss.target_threshold) == (0.0, 0.0)
    check(with_settings(base, ["loss.smoothing=0.1", "loss.target_threshold=0.2"]))


def test_another_optimiser_has_none_of_the_recipes_options_and_null_takes_them_away() -> None:
    ra = recipe("ra")
    assert with_settings(ra, ["optim.name=adamw"]).optim.options == {}
    assert with_settings(ra, ["optim.name=rmsproptf"]).optim.options == ra.optim.options
    given = ["optim.options={eps: 1.0e-6}", "optim.name=adamw"]
    assert with_settings(ra, given).optim.options == with_settings(ra, given[::-1]).optim.options == {"eps": 1e-6}
    assert with_settings(ra, ["optim={name: adamw, options: {eps: 0.5}}"]).optim.options == {"eps": 0.5}
    for none in ("optim.options={}", "optim.options=null"):
        assert with_settings(ra, [none]).optim.options == {}
    assert with_settings(ra, ["optim.options.eps=null"]).optim.options == {"momentum": 0.9, "alpha": 0.9}
    assert with_settings(ra, ["optim.options.eps=0.5"]).optim.options == {"momentum": 0.9, "alpha": 0.9, "eps": 0.5}
    assert from_dict(as_dict(ra)).optim == ra.optim
    with pytest.raises(VertebraError, match=r"optim.options=\[1\]: give names and values"):
        with_settings(ra, ["optim.options=[1]"])


def test_a_config_survives_its_text(tmp_path: Path) -> None:
    config = with_settings(recipe("deit"), ["data.source=photos", "optim.options={betas: [0.9, 0.99]}"])
    (tmp_path / "run.yaml").write_text(as_yaml(config))
    assert as_dict(with_file(RunConfig(), tmp_path / "run.yaml")) == as_dict(config)
    assert config_hash(from_dict(as_dict(config))) == config_hash(config)
    assert config_hash(with_settings(config, ["seed=1"])) != config_hash(config)


def test_differences_name_what_decides_the_weights_and_nothing_else() -> None:
    old = recipe("deit")
    new = with_settings(old, ["optim.lr=1", "save_every=3", "data.workers=7", "trackers=[]"])
    assert differences(as_dict(old), as_dict(new)) == ["optim.lr: 0.0005, now 1.0"]
    before = {key: value for key, value in as_dict(old).items() if key != "cuda_graphs"}  # of an older version
    assert differences(before, as_dict(old)) == []


def test_a_file_that_is_no_settings_is_refused(tmp_path: Path) -> None:
    for text, message in (("- 1", "holds no fields"), ("a: [", "is not YAML"), ("epoch: 3", "did you mean 'epochs'")):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(VertebraError, match=message):
            with_file(RunConfig(), tmp_path / "run.yaml")


def test_every_field_is_explained() -> None:
    source = Path(module.__file__).read_text()
    for kind in vars(module).values():
        if isinstance(kind, type) and is_dataclass(kind):
            part = source.split(f"class {kind.__name__}:")[1].split("\n\n\n")[0]
            own = 1 if kind is RunConfig else 0
            assert part.count('    """') == len(fields(kind)) + own, kind.__name__


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_run_and_says_what_to_expect(name: str) -> None:
    config = with_settings(recipe(name), ["data.source=photos"])
    if not config.model.name:
        config = with_settings(config, ["model.name=deit_tiny_patch16_224"])
    check(config)
    assert config.recipe == name
    assert "Expect " in about(name)


def test_what_a_recipe_says_itself_may_become_idle() -> None:
    config = with_settings(recipe("deit"), ["data.source=photos", "schedule.kind=constant"])
    assert config.schedule.min_lr > 0
    check(config)


def test_recipes_are_those_of_their_papers_where_these_say_it() -> None:
    dpn, deit3 = recipe("dpn"), recipe("deit3")
    large = with_settings(dpn, ["data.batch_size=1280"])
    rates = make_schedule(large, updates=1)
    assert [rates.at(epoch) for epoch in (0, 29, 30, 60)] == pytest.approx([0.316, 0.316, 0.0316, 0.00316])
    assert make_schedule(dpn, updates=1).at(0) == pytest.approx(0.316 * 256 / 1280)
    vit = architecture(deit3)
    assert isinstance(vit, VitConfig)
    assert vit.init_values == 1e-4


def test_an_unknown_recipe_has_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'finetune'"):
        recipe("fine-tune")
