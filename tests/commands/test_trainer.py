"""Experiments through `musiccm fit` and `musiccm test`, with a toy model in place of the real ones."""

import inspect
import logging
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.trainer.connectors import checkpoint_connector

from musiccm import cli, locks, signals
from musiccm.commands._checkpoints import CheckpointFiles
from musiccm.commands._nested_null import with_nested_nulls
from musiccm.commands._trainer import find_checkpoint
from musiccm.commands._trainer_help import named_options
from musiccm.config import load_experiment
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Distillation, Optimization
from tests.leftovers import leave_half_file

TOY = """
from dataclasses import dataclass
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from musiccm.errors import MusiccmError

TESTED = []

class Toy(LightningModule):
    def __init__(self, lr: float, width: int):
        super().__init__()
        if width > 99:
            raise MusiccmError(f"width {width} is beyond 99")
        self.save_hyperparameters()
        self.lr, self.net = lr, torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).mean()

    def test_step(self, batch, batch_idx):
        TESTED.append((self.lr, self.trainer.log_dir, self.net.weight.detach().clone()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

@dataclass
class Group:
    start: str | None = None
    share: float | None = None
    tail: float = 0.0

class Grouped(Toy):
    def __init__(self, lr: float, width: int, group: Group | None = None):
        super().__init__(lr, width)

class Ones(LightningDataModule):
    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, self.width))

    test_dataloader = train_dataloader
"""
BASE = """
trainer: {accelerator: cpu, max_steps: 4, enable_progress_bar: false, enable_model_summary: false, log_every_n_steps: 1}
model: {class_path: musiccm_toy.Toy, init_args: {lr: 1e-1, width: "${data.init_args.width}"}}
data: {class_path: musiccm_toy.Ones, init_args: {width: 3}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "musiccm_toy.py").write_text(TOY)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "toy.yaml").write_text("base: base.yaml\nmodel: {init_args: {lr: 2e-1}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main = cli.main
    monkeypatch.setattr(cli, "main", lambda argv: main([*argv, "--allow-import", "musiccm_toy"]))
    return tmp_path


def toy_module():
    import musiccm_toy

    return musiccm_toy


def test_fit_then_test_in_the_same_folder(here):
    assert cli.main(["fit", "--config", "toy.yaml", "--data.init_args.width", "5"]) == 0
    run = here / "lightning_logs/toy/version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"] == {"lr": 0.2, "width": 5}, "interpolation must follow the override"
    assert (run / "config.yaml").read_text().startswith("# git ")
    checkpoint = find_checkpoint("newest", here / "lightning_logs/toy")
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["net.weight"]
    assert weight.shape == (1, 5)

    # A checkpoint that carries hyperparameters (lr 0.2) must not override what is asked for now.
    arguments = ["--data.init_args.width", "5", "--ckpt_path", "newest", "--model.init_args.lr", "0.7"]
    toy_module().TESTED.clear()
    assert cli.main(["test", "--config", "toy.yaml", *arguments]) == 0
    lr, folder, tested = toy_module().TESTED[0]
    assert lr == 0.7
    assert (here / folder).resolve() == run.resolve()
    assert torch.equal(tested, weight)
    assert (run / "config_test.yaml").exists()
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]


def test_lightning_never_requeues_a_slurm_job_itself(here, monkeypatch):
    """Neither a fit nor a test has its handler, which saves and calls `scontrol`."""
    for name, value in {"NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7,
                        "JOB_NAME": "job"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert cli.main(["fit", "--config", "toy.yaml"]) == 0
    handlers = []
    monkeypatch.setattr(toy_module().Toy, "test_step", lambda *_: handlers.append(signal.getsignal(signal.SIGUSR1)))
    assert cli.main(["test", "--config", "toy.yaml", "--ckpt_path", "newest"]) == 0
    assert handlers and set(handlers) == {signals._note}


def test_the_preset_for_several_devices_gives_way_to_one(here):
    preset = Path(__file__).parents[2] / "experiments" / "strategies" / "ddp.yaml"
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert cli.main(["fit", "--config", "toy.yaml", "--config", str(preset), *alone]) == 0
    saved = yaml.safe_load((here / "lightning_logs/toy/version_0/config.yaml").read_text())["trainer"]
    assert (str(saved["devices"]), saved["strategy"]) == ("1", "auto")


def test_saved_config_runs_again_and_resuming_stays_in_its_folder(here):
    assert cli.main(["fit", "--config", "toy.yaml", "--ckpt_path", "auto"]) == 0
    runs = here / "lightning_logs/toy"
    first = (runs / "version_0/config.yaml").read_text()
    assert cli.main(["fit", "--config", str(runs / "version_0/config.yaml")]) == 0
    again = load_experiment(runs / "version_1/config.yaml")
    assert again == load_experiment(runs / "version_0/config.yaml")
    newest = find_checkpoint("newest", runs)
    assert "version_1" in newest
    assert cli.main(["fit", "--config", "toy.yaml", "--ckpt_path", "auto", "--trainer.max_steps", "6"]) == 0
    assert sorted(p.name for p in runs.iterdir()) == ["version_0", "version_1"]
    assert load_experiment(runs / "version_1/config_resumed.yaml")["trainer"]["max_steps"] == 6
    assert (runs / "version_0/config.yaml").read_text() == first
    assert torch.load(find_checkpoint("newest", runs), weights_only=True)["global_step"] == 6


def test_a_run_that_goes_on_is_left_alone(here, capsys):
    """By whoever would go on in its folder; a run of its own gets the next one."""
    assert cli.main(["fit", "--config", "toy.yaml"]) == 0
    runs = here / "lightning_logs/toy"
    with locked_folder(runs / "version_0"):
        before = sorted(path for path in runs.rglob("*"))
        for command in (["fit", "--trainer.max_steps", "6"], ["test"]):
            assert cli.main([command[0], "--config", "toy.yaml", "--ckpt_path", "newest", *command[1:]]) == 2
            shown = capsys.readouterr().err
            assert "version_0: in use by `" in shown and "Traceback" not in shown
        assert sorted(runs.rglob("*")) == before
        assert cli.main(["fit", "--config", "toy.yaml"]) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    assert not list(runs.rglob(".musiccm*"))
    # Held while it runs, and a folder that another run makes at the same moment is not taken for its own.
    held = []
    seen = toy_module().Toy
    original = seen.training_step

    def step(self, *arguments):
        held.append(locks.holder(Path(self.trainer.log_dir) / locks.LOCK))
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "training_step", step)
        listed = locks.os.listdir
        patch.setattr(locks.os, "listdir", lambda path: [n for n in listed(path) if n != "version_1"])
        assert cli.main(["fit", "--config", "toy.yaml"]) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1", "version_2"]
    assert len(held) == 4 and all(f"process {os.getpid()} on" in str(who) for who in held)


def test_a_start_removes_what_killed_runs_of_the_experiment_left(here):
    runs = here / "lightning_logs/toy"
    for folder in ("version_0/checkpoints", "version_3/samples", ""):
        leave_half_file(runs / folder)
    assert cli.main(["fit", "--config", "toy.yaml", "--ckpt_path", "auto"]) == 0
    assert not list(runs.rglob(".musiccm*"))
    assert find_checkpoint("newest", runs).startswith(str(runs / "version_4")), "nothing was found to go on from"


def test_last_ckpt_holds_the_last_step_whatever_the_cadence(here):
    saver = "pytorch_lightning.callbacks.ModelCheckpoint"
    (here / "odd.yaml").write_text(
        f"base: toy.yaml\ntrainer: {{max_steps: 7, callbacks: [{{class_path: {saver}, "
        "init_args: {every_n_train_steps: 3, save_top_k: 0, save_last: true}}]}\n"
    )
    assert cli.main(["fit", "--config", "odd.yaml"]) == 0
    last = here / "lightning_logs/odd/version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 7
    # Four batches an epoch: the file was written in the second, which is not over.
    arguments = ["--ckpt_path", "newest", "--trainer.max_steps", "8"]
    assert cli.main(["fit", "--config", "odd.yaml", *arguments]) == 0
    assert torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"] == 2


def test_without_a_logger_nothing_is_written_here(here):
    before = {p.name for p in here.iterdir()}
    quiet = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    assert cli.main(["fit", "--config", "toy.yaml", *quiet]) == 0
    assert {p.name for p in here.iterdir()} - before <= {"__pycache__"}


OWN_LOGGER = """
from pytorch_lightning.loggers.logger import DummyExperiment, Logger

class Own(Logger):
    name, version, save_dir = "project", "x7", "elsewhere"

    @property
    def experiment(self):
        return DummyExperiment()

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass
"""
CSV, TENSORBOARD = (f"pytorch_lightning.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger"))


@pytest.mark.parametrize(
    "logger",
    [
        ["--trainer.logger", "false"],
        ["--trainer.logger", CSV, "--trainer.logger.save_dir", "csvs"],
        ["--trainer.logger", TENSORBOARD, "--trainer.logger.save_dir", "boards"],
        ["--trainer.logger", f"[{{class_path: {CSV}, init_args: {{save_dir: csvs}}}}, "
                             f"{{class_path: {TENSORBOARD}, init_args: {{save_dir: boards}}}}]"],
        ["--trainer.logger", "own_logger.Own", "--allow-import", "own_logger"],
    ],
    ids=["none", "csv", "tensorboard", "list", "own"],
)
def test_a_run_keeps_one_folder_whatever_logs(here, logger):
    (here / "own_logger.py").write_text(OWN_LOGGER)
    runs = here / "lightning_logs/toy"
    (runs / "version_0").mkdir(parents=True)  # an earlier run
    assert cli.main(["fit", "--config", "toy.yaml", *logger]) == 0
    assert (runs / "version_1" / "config.yaml").is_file()
    assert list((runs / "version_1" / "checkpoints").glob("*.ckpt"))
    toy_module().TESTED.clear()
    assert cli.main(["test", "--config", "toy.yaml", "--ckpt_path", "newest", *logger]) == 0
    assert toy_module().TESTED[0][1] == str(Path("lightning_logs/toy/version_1"))
    assert (runs / "version_1" / "config_test.yaml").is_file()
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    assert not list(here.glob("*.yaml.*")) and not (here / "checkpoints").exists()
    elsewhere = [path for path in here.rglob("*.ckpt") if runs not in path.parents]
    assert elsewhere == [], "checkpoints follow the run and not its logger"


def test_progress_in_a_log_is_whole_lines(here, capsys):
    assert cli.main(["fit", "--config", "toy.yaml", "--trainer.enable_progress_bar", "true"]) == 0
    shown = "".join(capsys.readouterr())
    assert "fit: 4/4 step (100%)" in shown and "step/s" in shown
    assert "\r" not in shown and "\x1b" not in shown


def test_a_last_checkpoint_that_we_save_brings_no_hint_of_lightnings(here, monkeypatch):
    (here / "saves.yaml").write_text(yaml.safe_dump({"base": "toy.yaml", "trainer": {"max_steps": 3, "callbacks": [
        {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
         "init_args": {"every_n_train_steps": 2, "save_top_k": 0, "save_last": True}}]}}))
    said = []
    monkeypatch.setattr(checkpoint_connector.log, "info", lambda text, *_: said.append(text))
    assert cli.main(["fit", "--config", "saves.yaml"]) == 0
    (last,) = here.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3, "saved behind the callback's own"
    assert not [text for text in said if "weights_only" in text]


def test_plugins_of_the_users_leave_checkpoints_safe(here, monkeypatch):
    written = []
    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", lambda self, *args, **kwargs: written.append(args[1]))
    layer = "pytorch_lightning.plugins.TorchSyncBatchNorm"
    assert cli.main(["fit", "--config", "toy.yaml", "--trainer.plugins", layer]) == 0
    assert written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.init_args.lrr", "1"], "lrr"),
        (["--data.init_args.width", "wide"], "wide"),
        (["--data.init_args.width", "100"], "width 100 is beyond 99"),
        (["--nothing", "1"], "--nothing"),
        (["--model.class_path", "musiccm_toy.Gone"], "Gone"),
        (["--ckpt_path", "gone.ckpt"], "gone.ckpt"),
        (["--ckpt_path", "newest"], "no checkpoint under"),
        (["--trainer.max_steps", "${no.where}"], "no.where"),
        (["--trainer.strategy", "ddp_spawn"], "trainer.strategy: ddp_spawn"),
        (["--trainer.limit_test_batches", "-2"], "limit_test_batches"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval"),
    ],
)
def test_bad_arguments_are_one_message(here, capsys, arguments, said):
    assert cli.main(["fit", "--config", "toy.yaml", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert not (here / "lightning_logs").exists()


@pytest.mark.parametrize("null", [["--model.init_args.group.start", "null"], ["--model.group.start=~"]])
def test_null_takes_a_setting_of_a_group_back(here, null):
    """The file's start is given up, and its other settings of the group stay."""
    (here / "grouped.yaml").write_text("base: toy.yaml\nmodel: {class_path: musiccm_toy.Grouped, init_args: {lr: 0.1, "
                                       "width: 3, group: {start: gone.ckpt, share: 0.5, tail: 0.3}}}\n")
    assert cli.main(["fit", "--config", "grouped.yaml", *null, "--model.init_args.group.share", "null"]) == 0
    saved = yaml.safe_load((here / "lightning_logs/grouped/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["group"] == {"start": None, "share": None, "tail": 0.3}


def test_a_null_is_moved_where_it_is_a_setting_inside_a_group():
    kept = ["fit", "--trainer.max_time", "null", "--model.init_args.teacher", "null", "--data.init_args.x", "~"]
    assert with_nested_nulls(kept) == kept
    assert with_nested_nulls(["fit", "--model.init_args.a.b.c", "null", "--n", "2"]) == [
        "fit", '--model.init_args.a={"b": {"c": null}}', "--n", "2"]


def test_training_does_not_go_on_from_weights_alone(here, capsys):
    saver = "pytorch_lightning.callbacks.ModelCheckpoint"
    (here / "light.yaml").write_text(
        f"base: toy.yaml\ntrainer: {{callbacks: [{{class_path: {saver}, init_args: {{save_weights_only: true}}}}]}}\n"
    )
    assert cli.main(["fit", "--config", "light.yaml"]) == 0
    assert cli.main(["test", "--config", "light.yaml", "--ckpt_path", "newest"]) == 0
    capsys.readouterr()
    assert cli.main(["fit", "--config", "light.yaml", "--ckpt_path", "newest"]) == 2
    said = capsys.readouterr().err
    assert "lightning_logs/light/version_0/checkpoints/" in said and "holds weights alone" in said


@pytest.mark.parametrize(("command", "n", "says"), [
    ("fit", "5", "expected at least 2 clips of `musiccm test`, found 5 for `musiccm fit`"),
    ("test", "1", "found 1 for `musiccm test`"), ("test", "5", "trainer.callbacks has no musiccm.callbacks.evaluation"),
])
def test_clips_to_score_are_refused_where_nothing_scores_them(here, capsys, command, n, says):
    assert cli.main([command, "--config", "toy.yaml", "--n", n]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_names_the_checkpoints_that_are_taken(here, capsys, command):
    assert cli.main([command, "--help-all"]) == 0
    said = " ".join(capsys.readouterr().out.split()).split("--ckpt_path", 2)[-1].split(" --")[0]
    assert "newest" in said and "auto" in said and "registry" not in said and "hpc" not in said


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_is_a_page_of_options_that_are_there(here, capsys, command):
    """As long as a page, and every option on it is the Trainer's, the command's, or an argument of the classes."""
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100 and f"musiccm {command} --help-all" in printed
    assert cli.main([command, "--help-all"]) == 0
    every = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    known = {"--data.init_args": MusicDataModule, "--model.init_args.optimization": Optimization,
             "--model.init_args.distillation": Distillation, "--model.init_args": MusicCM}
    for option in re.findall(r"^  (--\S+) ", printed, flags=re.M):
        owner, _, name = option.rpartition(".")
        if owner in known:
            assert name in inspect.signature(known[owner]).parameters, option
        else:
            assert option in every | {"--allow-import", "--config"}, option
    assert set(re.findall(r"^  (--\S+) ", printed, flags=re.M)) == set(named_options(command))


def test_help_of_a_class_is_as_the_page_says(here, capsys):
    assert cli.main(["fit", "--model.help", "musiccm.systems.musiccm.MusicCM"]) == 0
    printed = capsys.readouterr().out
    assert "--model.distillation" in printed and "--model.bundle" in printed


def test_newest_checkpoint_is_the_last_written(tmp_path):
    for age, name in [(3, "version_2/checkpoints/a.ckpt"), (1, "version_0/checkpoints/b.ckpt")]:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_checkpoint("newest", tmp_path) == str(tmp_path / "version_0/checkpoints/b.ckpt")
    assert find_checkpoint("auto", tmp_path / "none") is None
    assert find_checkpoint(None, tmp_path) is None
    with pytest.raises(MusiccmError):
        find_checkpoint("newest", tmp_path / "none")
    # None of these is a checkpoint of a run, however new it is.
    leave_half_file(tmp_path / "version_2/checkpoints")
    (tmp_path / "version_2/checkpoints/folder.ckpt").mkdir()
    (tmp_path / "version_2/checkpoints/gone.ckpt").symlink_to(tmp_path / "gone")
    (tmp_path / "version_2.bak/checkpoints").mkdir(parents=True)
    (tmp_path / "version_2.bak/checkpoints/last.ckpt").touch()
    assert find_checkpoint("newest", tmp_path) == str(tmp_path / "version_0/checkpoints/b.ckpt")
