"""Trainer options that cannot work are refused by a name that can be set, and the others are let through."""

import pytest
import yaml

from musiccm import cli
from musiccm.commands._trainer_options import check_trainer_options
from musiccm.errors import MusiccmError
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.stages.tagger import TaggerStage

SAVER = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
USUAL = {"max_steps": 10, "max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 5,
         "precision": "32-true", "accumulate_grad_batches": 1, "callbacks": [SAVER]}


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("accumulate_grad_batches", 2, "model.init_args.optimization.accumulate"),
        ("gradient_clip_val", 1.0, "model.init_args.optimization.clip_norm"),
        ("gradient_clip_algorithm", "value", "model.init_args.optimization.clip_norm"),
        ("val_check_interval", 0.5, "check_val_every_n_epoch: 1"),
        ("val_check_interval", 1.0, "check_val_every_n_epoch: 1"),
        ("val_check_interval", "0:10", "DD:HH:MM:SS"),
        ("enable_checkpointing", False, "trainer.callbacks"),
        ("precision", "bf16-true", "bf16-mixed"),
        ("precision", "16-true", "bf16-mixed"),
        ("precision", "16-mixed", "bf16-mixed"),
        ("precision", 16, "bf16-mixed"),
        ("precision", "64-true", "32-true"),
        ("precision", 64, "32-true"),
        ("precision", "transformer-engine-float16", "bf16-mixed"),
        ("barebones", True, "leave it out"),
        ("max_steps", -1, "number of steps"),
        ("limit_train_batches", 0, "at least 1"),
        ("max_steps", 0, "at least 1"),
        ("max_epochs", 0, "at least 1"),
        ("val_check_interval", 0, "limit_val_batches: 0"),
        ("check_val_every_n_epoch", 0, "limit_val_batches: 0"),
        ("num_nodes", 0, "at least 1"),
        ("strategy", "ddp_spawn", "ddp"),
        ("strategy", "ddp_notebook", "ddp"),
        ("strategy", "deepspeed_stage_2", "musiccm.systems.sharded.Sharded"),
        ("strategy", "fsdp", "strategies/fsdp.yaml"),
        ("strategy", "dp", "ddp"),
        ("strategy", {"class_path": "pytorch_lightning.strategies.FSDPStrategy"}, "strategies/fsdp.yaml"),
        ("strategy", {"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {"start_method": "fork"}},
         "ddp"),
    ],
)
def test_refused_for_the_distillation(option, value, says):
    with pytest.raises(MusiccmError) as raised:
        check_trainer_options("fit", {**USUAL, option: value}, DistilledSystem)
    assert str(raised.value).startswith(f"trainer.{option}: ")
    assert says in str(raised.value)


# Each was tried on a small run and ended with exit code 0.
WORKS = [
    ("precision", "bf16-mixed"), ("precision", "bf16"), ("precision", 32), ("precision", None),
    ("gradient_clip_val", None), ("val_check_interval", 20), ("val_check_interval", "00:00:00:05"),
    ("fast_dev_run", True), ("overfit_batches", 1), ("max_time", "00:00:00:02"), ("benchmark", True),
    ("reload_dataloaders_every_n_epochs", 1), ("sync_batchnorm", True), ("deterministic", "warn"),
    ("detect_anomaly", True), ("inference_mode", False), ("use_distributed_sampler", False), ("profiler", "simple"),
    ("strategy", "auto"), ("strategy", "ddp"), ("strategy", "single_device"),
    ("strategy", {"class_path": "musiccm.systems.sharded.Sharded"}),
    ("strategy", {"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {}}), ("callbacks", None),
]


@pytest.mark.parametrize(("option", "value"), WORKS)
def test_what_works_stays_allowed(option, value):
    check_trainer_options("fit", {**USUAL, option: value}, MusicCM)


def test_a_stage_has_lightnings_own_accumulation_and_clipping_but_no_trial_run():
    options = {**USUAL, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "gradient_clip_algorithm": "value",
               "precision": "16-mixed"}
    check_trainer_options("fit", options, TaggerStage)
    with pytest.raises(MusiccmError, match="trainer.fast_dev_run: .*bundle"):
        check_trainer_options("fit", {**USUAL, "fast_dev_run": True}, TaggerStage)
    with pytest.raises(MusiccmError, match="trainer.max_steps"):
        check_trainer_options("fit", {**USUAL, "max_steps": -1}, TaggerStage)


def test_measuring_is_not_bound_by_how_training_steps():
    trained = {**USUAL, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "max_steps": -1}
    for command in ("validate", "test"):
        check_trainer_options(command, trained, MusicCM)
        with pytest.raises(MusiccmError, match="trainer.precision"):
            check_trainer_options(command, {**trained, "precision": "bf16-true"}, MusicCM)
    check_trainer_options("fit", {**USUAL, "enable_checkpointing": False, "callbacks": []}, MusicCM)
    for option, value in (("limit_test_batches", 0), ("fast_dev_run", 2)):
        with pytest.raises(MusiccmError, match=f"trainer.{option}: .*`limit`"):
            check_trainer_options("test", {**USUAL, option: value}, MusicCM)


def test_no_bundle_and_no_corpus_is_read_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = {
        "trainer": {"accelerator": "cpu", "max_steps": 2},
        "model": {"class_path": "musiccm.systems.musiccm.MusicCM", "init_args": {"bundle": "no/such/bundle"}},
        "data": {"class_path": "musiccm.data.module.MusicDataModule", "init_args": {"root": "no/such/corpus"}},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))
    assert cli.main(["fit", "--config", "e.yaml", "--trainer.accumulate_grad_batches", "2"]) == 2
    said = capsys.readouterr().err
    assert "trainer.accumulate_grad_batches: 2" in said and "optimization.accumulate" in said
    assert "no/such" not in said
    assert not (tmp_path / "lightning_logs").exists()


def test_a_value_of_the_wrong_type_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    option = "model.init_args.intervals.snr_bound"
    assert cli.main(["fit", "--config", "tta/ablations/ours", f"--{option}", "nan"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"musiccm: {option}: expected a number, found nan"
