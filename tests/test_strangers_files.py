"""Files from somebody else: whatever they hold, nothing of it runs, and nothing outside their folder is read."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_bundle import build_random_bundle

from musiccm import cli
from musiccm.commands._checkpoints import CheckpointFiles
from musiccm.commands._imports import TRUSTED, covers
from musiccm.commands.export import read_student
from musiccm.config import load_experiment
from musiccm.data.corpora.split_lists import read_split_list
from musiccm.embedders import load_embedder
from musiccm.embedders.weights import load_checkpoint
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle, untrusted
from musiccm.models.bundle import files as bundle_files
from musiccm.models.bundle.files import PARTS
from musiccm.models.convert.reading import read_original
from musiccm.similarity.index import TrainingIndex

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MARKER = "MARKER"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = build_random_bundle(tmp_path_factory.mktemp("clean") / "bundle", frames=4, decoder=True)
    shutil.copytree(bundle / "evaluators/tagger", bundle / "evaluators/sections")
    for part in ("text_encoder", "tokenizer", "feature_extractor"):  # side by side in the second CLAP
        shutil.copytree(bundle / part, bundle / "evaluators/clap_second", dirs_exist_ok=True)
    return bundle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder whose modules can be imported; the code planted in it makes a folder `MARKER`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # whoever is asked whether code may run, agrees
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    (tmp_path / "planted.py").write_text(planted(tmp_path))
    (tmp_path / "outside").mkdir()
    yield tmp_path
    assert not (tmp_path / MARKER).exists(), "code from a file was run"


def planted(folder: Path) -> str:
    return f"""
import os
os.makedirs({str(folder / MARKER)!r}, exist_ok=True)
from pytorch_lightning import Callback, LightningModule
from transformers import RobertaTokenizerFast
class Evil(Callback): pass
class Model(LightningModule): pass
class Tokenizer(RobertaTokenizerFast): pass
"""


@pytest.fixture
def bundle(clean: Path, here: Path) -> Path:
    return shutil.copytree(clean, here / "bundle")


class Bomb:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder / MARKER),)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def opened(bundle: Path) -> Bundle:
    """Every part, read."""
    found = Bundle.from_pretrained(bundle)
    for name in (name for name in PARTS if found.has(name)):
        found.part(name)
    return found


def refused(call: Callable[[], Any], *said: str) -> str:
    with pytest.raises(MusiccmError) as caught:
        call()
    for words in said:
        assert words in str(caught.value), (words, str(caught.value))
    return str(caught.value)


# bundles

@pytest.mark.parametrize("part", list(PARTS))
def test_auto_map_in_any_part_is_refused(bundle: Path, part: str) -> None:
    config = bundle / part / PARTS[part].config_file
    if not config.exists():  # a part of another kind of model
        config.parent.mkdir()
        config.write_text("{}")
    shutil.copy("planted.py", bundle / part)
    change(config, auto_map={"AutoTokenizer": [None, "planted.Tokenizer"], "AutoModel": "planted.Model"})
    refused(lambda: opened(bundle), str(config), "auto_map")


@pytest.mark.parametrize("trusting", [untrusted, bundle_files])
def test_nobody_is_asked_whether_code_may_run(bundle: Path, monkeypatch: pytest.MonkeyPatch, trusting: Any) -> None:
    """The libraries' own refusal holds where ours would miss something."""
    monkeypatch.setattr(trusting, "check_folder", lambda *_: None)
    shutil.copy("planted.py", bundle / "tokenizer")
    change(bundle / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "planted.Tokenizer"]},
           tokenizer_class="Tokenizer")
    read = untrusted.load_tokenizer if trusting is untrusted else lambda folder: opened(folder.parent)
    with pytest.raises((MusiccmError, ValueError), match="trust_remote_code"):
        read(bundle / "tokenizer")


@pytest.mark.parametrize(("file", "entries", "said"), [
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": "planted.Tokenizer"}, "tokenizer_class"),
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": ["planted", "Tokenizer"]}, "tokenizer_class"),
    ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../../outside/tokenizer.1.0.json"]}, "outside"),
    ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
    ("text_encoder/config.json", {"text_config": {"auto_map": {"AutoModel": "planted.Model"}}}, "auto_map"),
    ("text_encoder/config.json", {"_attn_implementation": "planted/kernel"}, "_attn_implementation"),
    ("text_encoder/config.json", {"model_type": "planted"}, "model_type"),
    ("vocoder/config.json", {"quantization_config": {"quant_method": "planted"}}, "quantization_config"),
    ("unet/config.json", {"_class_name": ["planted", "Model"]}, "_class_name"),
    ("unet/config.json", {"sample_size": float("nan")}, "sample_size"),
    ("model_index.json", {"unet": ["planted", "Model"]}, "unet"),
    ("model_index.json", {"safety_checker": ["planted", "Model"]}, "safety_checker"),
    ("model_index.json", {"_class_name": ["planted", "Pipeline"]}, "_class_name"),
])
def test_configurations_that_name_code_or_other_files(bundle: Path, file: str, entries: dict, said: str) -> None:
    change(bundle / file, **entries)
    refused(lambda: opened(bundle), str(bundle / file), said)


def test_what_lies_beside_the_files_of_a_tokenizer_is_not_run(bundle: Path, here: Path) -> None:
    """A module of the library's own name, and chat templates, which are read and never rendered."""
    for name in ("tokenizer.py", "tokenization_roberta.py", "__init__.py"):
        shutil.copy("planted.py", bundle / "tokenizer" / name)
    template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(here / MARKER) + "') }}"
    (bundle / "tokenizer/chat_template.jinja").write_text(template)
    (bundle / "tokenizer/additional_chat_templates").mkdir()
    (bundle / "tokenizer/additional_chat_templates/x.jinja").write_text(template)
    assert opened(bundle).conditioner().text(["slow organ chords"]).isfinite().all()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "decoder"])
def test_pickled_weights_are_not_read(bundle: Path, here: Path, part: str) -> None:
    weights = bundle / part / f"{PARTS[part].weights}.safetensors"
    weights.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt"):
        torch.save({"a": Bomb(here)}, bundle / part / name)
    refused(lambda: opened(bundle), str(weights), "not safetensors")


def lying(entries: Any, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(64)


LIES = {
    "a header longer than the file": lying({}, 2**40), "a header beyond all bounds": lying({}, 2**63),
    "tensors over each other": lying({name: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} for name in "ab"}),
    "a tensor beyond the end": lying({"a": {"dtype": "F32", "shape": [999], "data_offsets": [0, 3996]}}),
    "a shape that is not its size": lying({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}),
    "a pickle": pickle.dumps({"a": 1}), "a zip": b"PK\x03\x04" + bytes(100), "nothing": b"",
}


@pytest.mark.parametrize("part", ["unet", "text_encoder", "evaluators/tagger"])
def test_weights_whose_header_lies(bundle: Path, part: str) -> None:
    for lie in LIES.values():
        (bundle / part / f"{PARTS[part].weights}.safetensors").write_bytes(lie)
        refused(lambda: Bundle.from_pretrained(bundle).part(part), str(bundle / part))


@pytest.mark.parametrize("name", ["../../outside/x.safetensors", "/outside/x.safetensors", "pytorch_model.bin", 7])
def test_weights_in_several_files_are_in_the_folder(bundle: Path, name: Any) -> None:
    index = bundle / "text_encoder/model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale_a": name}}))
    refused(lambda: Bundle.from_pretrained(bundle), str(index), repr(name))


BROKEN = {"deep": '{"a":' * 100_000, "deep lists": '{"a": ' + "[" * 100_000, "digits": '{"a": ' + "9" * 9999 + "}",
          "latin": '{"a": "\xe9"}', "a list": "[1]", "nothing": ""}


@pytest.mark.parametrize("file", ["model_index.json", "musiccm.json", "unet/config.json",
                                  "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"])
def test_json_that_is_none(bundle: Path, file: str) -> None:
    for text in BROKEN.values():
        (bundle / file).write_bytes(text.encode("latin-1"))
        refused(lambda: opened(bundle), str(bundle / file))


def test_links_out_of_a_bundle(bundle: Path, here: Path) -> None:
    """Of a file that is read, of one that an export would copy, of a whole part; a bundle may itself be a link."""
    for file in ("model_index.json", "musiccm.json", "unet/config.json", "vae/notes.txt", "tokenizer"):
        inside, outside = bundle / file, here / "outside" / Path(file).name
        if inside.exists():
            inside.rename(outside)
        else:
            outside.write_text("secret")
        inside.symlink_to(outside)
        assert "outside of" in refused(lambda: Bundle.from_pretrained(bundle), str(bundle / file))  # noqa: B023
        inside.unlink()
        if file != "vae/notes.txt":
            outside.rename(inside)
    (here / "link").symlink_to(bundle)
    opened(here / "link")
    (bundle / "unet/again.json").symlink_to("config.json")
    opened(bundle)


def test_a_snapshot_of_the_hub_is_links_into_its_blobs(bundle: Path, here: Path) -> None:
    cache = here / "hub/models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = Path(shutil.copytree(bundle, cache / "snapshots/0123"))
    for number, file in enumerate(sorted(file for file in snapshot.rglob("*") if file.is_file())):
        blob = file.rename(cache / "blobs" / str(number))
        file.symlink_to(os.path.relpath(blob, file.parent))
    opened(snapshot)
    config = snapshot / "unet/config.json"
    shutil.copy(config, here / "outside")
    config.unlink()
    config.symlink_to(here / "outside/config.json")
    refused(lambda: opened(snapshot), str(config))


def test_the_base_of_a_student_lies_beside_it_or_is_a_name(bundle: Path) -> None:
    for base in ("/etc", "..", ".", "", "../..", "../../other", "../a/b", "../", "~/x", "a/b/c", "./a", "..\\x",
                 "a/../../b", 5, None, ["../x"]):
        change(bundle / "musiccm.json", base={"path": base, "parts": ["vae"], "content_hash": "0"})
        refused(lambda: Bundle.from_pretrained(bundle), str(bundle / "musiccm.json"), repr(base))
        refused(lambda: bundle_files.base_folder(bundle, base, Path("--base"), ["vae"]), "--base: ", repr(base))  # noqa: B023


def test_bases_that_lead_in_a_circle_or_to_no_parts(bundle: Path, here: Path) -> None:
    change(bundle / "musiccm.json", base={"path": "../bundle", "parts": ["vae"], "content_hash": "0"})
    refused(lambda: Bundle.from_pretrained(bundle), "leads back")
    change(bundle / "musiccm.json", base={"path": "../bundle", "parts": ["../outside"], "content_hash": "0"})
    refused(lambda: Bundle.from_pretrained(bundle), "base.parts")
    # a name is not looked for in the current folder
    shutil.copytree(bundle, here / "owner/name")
    change(bundle / "musiccm.json", base={"path": "owner/name", "parts": ["vae"], "content_hash": "0"})
    refused(lambda: Bundle.from_pretrained(bundle), "the hub could not give it")
    # one that is to be written first is told so
    refused(lambda: Bundle.from_pretrained("owner/other"), "the hub could not give it", "owner is a folder here")


def test_a_command_says_so_and_exits_with_2(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(bundle / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "planted.Tokenizer"]})
    assert cli.main(["generate", "slow organ chords", "--model", str(bundle), "--out", "x.wav"]) == 2
    assert "tokenizer_config.json: auto_map" in capsys.readouterr().err


def test_a_clap_and_a_tokenizer_that_are_named_outright(bundle: Path, here: Path, clean: Path) -> None:
    clap = here / "clap"
    for part in ("tokenizer", "feature_extractor", "text_encoder"):
        shutil.copytree(clean / part, clap, dirs_exist_ok=True)
    load_embedder("clap", clap)
    torch.save({"a": Bomb(here)}, clap / "pytorch_model.bin")
    weights = (clap / "model.safetensors").rename(here / "outside/model.safetensors")
    refused(lambda: load_embedder("clap", clap), str(clap))
    (clap / "model.safetensors").symlink_to(weights)
    refused(lambda: load_embedder("clap", clap), "model.safetensors", "outside of")
    change(bundle / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "planted.Tokenizer"]})
    refused(lambda: untrusted.load_tokenizer(bundle / "tokenizer"), "tokenizer_config.json: auto_map")


# pickles

def pickles(folder: Path) -> dict[str, Path]:
    """Files that make the marker when they are unpickled, in every wrapping."""
    found = {name: folder / f"{name}.ckpt" for name in ("zip", "legacy", "bare", "polyglot", "program", "nested")}
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Bomb(folder)}, found["zip"])
    torch.save({"state_dict": Bomb(folder)}, found["legacy"], _use_new_zipfile_serialization=False)
    found["bare"].write_bytes(pickle.dumps(Bomb(folder)))
    # begins as a pickle and ends as a zip: two readers may see two files
    found["polyglot"].write_bytes(pickle.dumps(Bomb(folder)) + found["zip"].read_bytes())
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(found["program"]))
    with zipfile.ZipFile(found["nested"], "w") as archive:  # names that lead out of it
        archive.writestr("a/data.pkl", pickle.dumps(Bomb(folder), protocol=2))
        archive.writestr("../../outside/x", "x")
        archive.writestr("a/version", "3\n")
    return found


@pytest.mark.parametrize("read", [
    CheckpointFiles().load_checkpoint, read_student, read_original, load_checkpoint,
    lambda path: load_embedder("pann", path)], ids=["resume", "export", "convert", "weights", "embedder"])
@pytest.mark.filterwarnings("ignore")
def test_pickles_are_not_unpickled(here: Path, read: Callable[[Path], Any]) -> None:
    for path in pickles(here).values():
        message = refused(lambda: read(path), str(path))  # noqa: B023
        assert "weights_only" not in message and "trust" not in message and "add_safe_globals" not in message


def test_lists_and_indices_hold_no_objects(here: Path) -> None:
    np.save(here / "train.npy", np.array([Bomb(here)], dtype=object), allow_pickle=True)
    refused(lambda: read_split_list(here, "train"), "train.npy", "Python objects")
    index = here / "index"
    index.mkdir()
    (index / "index.json").write_text("[" * 100_000)
    refused(lambda: TrainingIndex(index), "index.json")


# configurations

@pytest.fixture
def fit(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(content: dict | str, *arguments: str, code: int = 2) -> str:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (here / "mine.yaml").write_text(text)
        quiet = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False,
                 "enable_progress_bar": False, "enable_model_summary": False}
        (here / "quiet.yaml").write_text(yaml.safe_dump({
            "trainer": quiet, "model": {"class_path": "pytorch_lightning.demos.boring_classes.BoringModel"},
            "data": {"class_path": "pytorch_lightning.demos.boring_classes.BoringDataModule"}}))
        assert cli.main(["fit", "--config", "quiet.yaml", "--config", "mine.yaml", *arguments]) == code
        return capsys.readouterr().err

    return run


EVIL = {"class_path": "planted.Evil"}


@pytest.mark.parametrize(("key", "value"), [
    ("trainer.callbacks", [EVIL]), ("trainer.callbacks", EVIL), ("trainer.callbacks", ["planted.Evil"]),
    ("trainer.plugins", [EVIL]), ("trainer.strategy", EVIL), ("trainer.logger", [EVIL]), ("trainer.profiler", EVIL),
    ("trainer.callbacks", [{"class_path": "pytorch_lightning.callbacks.LambdaCallback",
                            "init_args": {"on_fit_start": "planted.Evil"}}]),
    ("model", {"class_path": "planted.Model"}), ("model", "planted.Model"), ("data", EVIL), ("model", "sub.yaml"),
])
def test_modules_that_a_configuration_names_are_not_imported(
    fit: Callable[..., str], here: Path, key: str, value: Any
) -> None:
    (here / "sub.yaml").write_text("class_path: planted.Model\n")
    section, _, name = key.partition(".")
    shown = fit({section: {name: value} if name else value})
    assert f"{key}: names planted." in shown and "--allow-import planted" in shown
    assert "planted" not in sys.modules


def test_nor_what_an_interpolation_or_a_free_mapping_names(fit: Callable[..., str]) -> None:
    assert "${..experiment}" in fit({"experiment": "planted.Model", "model": {"class_path": "${experiment}"}})
    module = {"class_path": "musiccm.data.module.MusicDataModule", "init_args": {"root": "x", "corpora": [EVIL]}}
    assert "data.init_args.corpora[0].class_path: names planted.Evil" in fit({"data": module})
    logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": {"save_dir": "x"},
              "dict_kwargs": {"x": EVIL}}
    assert "trainer.logger[0].dict_kwargs.x.class_path: names planted" in fit({"trainer": {"logger": [logger]}})
    assert "planted" not in sys.modules


@pytest.mark.parametrize("arguments", [
    ["--model", "planted.Model"], ["--trainer.callbacks+=planted.Evil"], ["--trainer.callbacks", "planted.Evil"],
    ["--model.class_path=planted.Model"], ["--model.help", "planted.Model"]])
def test_nor_are_those_of_the_command_line(fit: Callable[..., str], arguments: list[str]) -> None:
    assert "--allow-import planted" in fit("seed_everything: 0\n", *arguments)


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "torch.hub.load", "torch.load",
                                  "pytorch_lightning.utilities.imports.sys.exit"])
def test_functions_of_python_and_torch_are_no_part_of_a_configuration(fit: Callable[..., str], path: str) -> None:
    assert "is not imported" in fit({"model": {"class_path": path}})


@pytest.mark.parametrize(("section", "path"), [
    ("model", "pytorch_lightning.LightningModule.load_from_checkpoint"),
    ("model", "musiccm.systems.musiccm.MusicCM.load_from_checkpoint"),
    ("data", "pytorch_lightning.LightningDataModule.from_datasets")])
def test_a_class_path_is_a_class(fit: Callable[..., str], here: Path, section: str, path: str) -> None:
    torch.save({"state_dict": Bomb(here)}, here / "bomb.ckpt")
    init = {"checkpoint_path": "bomb.ckpt", "weights_only": False} if section == "model" else {}
    assert path in fit({section: {"class_path": path, "init_args": init}})


def test_an_option_allows_a_module_for_one_run(here: Path, fit: Callable[..., str]) -> None:
    config = {"trainer": {"callbacks": [EVIL]}}
    try:
        fit(config, "--allow-import", "planted", code=0)
        assert (here / MARKER).exists()
    finally:
        shutil.rmtree(here / MARKER, ignore_errors=True)
    assert "--allow-import planted" in fit(config)
    assert "expected the dotted name" in fit(config, "--allow-import", "not a name")


def test_experiments_that_come_with_the_package_need_no_option() -> None:
    def paths(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [p for k, v in value.items() for p in ([v] if k == "class_path" else paths(v))]
        return [p for v in value for p in paths(v)] if isinstance(value, list) else []

    named = {p for file in EXPERIMENTS.rglob("*.yaml") for p in paths(load_experiment(file, resolve=False))}
    assert len(named) > 10 and all(covers(TRUSTED, path) for path in named)


def test_an_experiment_is_the_name_of_one_folder(fit: Callable[..., str]) -> None:
    said = "experiment: expected the name of a folder"
    for name in ("../..", "/tmp/x", "", " ", "a/b", "..", ".", "x" * 201, "a\\b", "a\nb", "\u00e9" * 101, None, ["a"]):
        assert said in fit({"experiment": name})
    for name in ("../..", "/tmp/x", "", "x" * 201):
        assert said in fit("seed_everything: 0\n", f"--experiment={name}")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(("text", "said"), [
    ("x: !!python/object/apply:os.mkdir [MARKER]\n", "python/object/apply:os.mkdir"),
    ("x: !!python/name:planted.Evil\n", "python/name:planted.Evil"),
    ("x: !!python/object/apply:pathlib.PosixPath [x]\n", "pathlib"), ("x: !mine 3\n", "!mine"),
    (LAUGHS, "values"), ("x: &x [*x]\n", "values"), ("x: " + "[" * 1000 + "]" * 1000, "nested"),
])
def test_yaml_is_plain(here: Path, text: str, said: str) -> None:
    (here / "mine.yaml").write_text(text)
    refused(lambda: load_experiment(here / "mine.yaml"), "mine.yaml", said)


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "${oc.coerce:planted.Evil,1}", "${oc.decode:'${oc.env:SECRET}'}",
                                   "${oc.${x}:SECRET}"])
def test_a_configuration_reads_no_environment(
    here: Path, fit: Callable[..., str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    from omegaconf import OmegaConf

    monkeypatch.setenv("SECRET", "hunter2")
    text = yaml.safe_dump({"x": "env", "trainer": {"default_root_dir": value}})
    (here / "mine.yaml").write_text(text)
    message = refused(lambda: load_experiment(here / "mine.yaml"), "functions are not called")
    shown = fit({"trainer": {"default_root_dir": value.replace("${x}", "env")}})
    assert "functions are not called" in shown or "nterpolation" in shown
    assert "hunter2" not in message + shown
    assert OmegaConf.to_container(OmegaConf.create({"x": "${oc.env:SECRET}"}), resolve=True) == {"x": "hunter2"}


FOREIGN = {"class_path": "lightning_fabric.plugins.TorchCheckpointIO"}
OURS = {"class_path": "musiccm.commands._checkpoints.CheckpointFiles"}
WRAPPER = "pytorch_lightning.plugins.AsyncCheckpointIO"


@pytest.mark.parametrize(("trainer", "said"), [
    ({}, "bomb.ckpt"),
    ({"plugins": [{"class_path": "pytorch_lightning.plugins.Precision"}]}, "bomb.ckpt"),
    ({"plugins": {"class_path": "pytorch_lightning.plugins.Precision"}}, "bomb.ckpt"),
    ({"plugins": [OURS]}, "bomb.ckpt"),
    ({"plugins": [{"class_path": WRAPPER, "init_args": {"checkpoint_io": OURS}}]}, "bomb.ckpt"),
    ({"plugins": [{"class_path": WRAPPER}]}, "bomb.ckpt"),
    ({"plugins": [FOREIGN]}, "trainer.plugins: lightning_fabric.plugins.io.torch_io.TorchCheckpointIO"),
    ({"strategy": {"class_path": "pytorch_lightning.strategies.SingleDeviceStrategy",
                   "init_args": {"device": "cpu", "checkpoint_io": FOREIGN}}}, "trainer.strategy: lightning_fabric"),
])
def test_checkpoints_are_read_by_our_reader_whatever_the_plugins(
    here: Path, fit: Callable[..., str], trainer: dict, said: str
) -> None:
    torch.save({"state_dict": Bomb(here), "pytorch-lightning_version": "2.6.6"}, here / "bomb.ckpt")
    assert said in fit({"trainer": trainer}, "--ckpt_path", "bomb.ckpt")


def test_weights_only_stays_and_folders_are_no_checkpoints(here: Path, fit: Callable[..., str]) -> None:
    assert "weights_only" in fit({"weights_only": False})
    (here / "sharded.ckpt").mkdir()
    (here / "sharded.ckpt/.metadata").write_bytes(pickle.dumps(Bomb(here)))
    assert "sharded.ckpt is a folder" in fit("seed_everything: 0\n", "--ckpt_path", "sharded.ckpt")
