"""The wheel: what is in it, what its extras bring, and that each of them is enough for its commands."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_corpus import write_corpus

import musiccm
from musiccm.config import load_experiment
from musiccm.errors import EXTRAS
from tests.bare_install import link, required, unpacked

ROOT = Path(__file__).parents[1]
MIB = 2**20
#: `make setup` brings it and a plain pip cannot; evaluation/reference.py says so.
BY_HAND = {"audioldm_eval"}

#: Runs in an environment that holds the wheel and what it requires. Arguments: the experiment's corpus, then the steps,
#: each `NAME=FOLDER`, the folder being one to look for libraries in besides the wheel's own, or empty.
PROGRAM = r"""
import importlib, io, contextlib, json, sys
wheel, corpus, *steps = sys.argv[1:]
sys.path[:0] = [path for path in (wheel,) if path]
found = {}
def run(*arguments):
    from musiccm.cli import main
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(list(arguments))
    sys.stderr.write(said.getvalue())
    return code, said.getvalue()
extra = None
for step in steps:
    name, _, folder = step.partition("=")
    sys.path = [path for path in sys.path if path != extra] + ([folder] if folder else [])
    extra = folder if name != "generate" else None
    importlib.invalidate_caches()
    if name == "generate":
        found["generate"] = run("generate", "a piano", "slow organ chords", "--steps", "1", "--out", "made/clip.wav")
        found["continue"] = run("generate", "a piano", "--continue", corpus + "/test/test_000.flac", "--steps", "1",
                                "--seconds", "3", "--out", "longer.wav")
    elif name == "refused":
        found["fit refused"] = run("fit", "--config", "stages/vae")
        found["evaluate refused"] = run("evaluate", "--generated", "made", "--reference", "made")
        import musiccm
        try:
            found["MusicCM"] = str(musiccm.MusicCM)
        except musiccm.MusiccmError as error:
            found["MusicCM"] = str(error)
    elif name == "evaluate":
        found["evaluate"] = run("evaluate", "--generated", "made", "--reference", "made", "--bundle", "musiccm-tiny",
                                "--embedder", "tagger")
        found["lightning"] = sorted({"pytorch_lightning", "jsonargparse", "omegaconf", "matplotlib"} & set(sys.modules))
    elif name == "fit":
        found["fit"] = run("fit", "--config", "stages/vae", "--trainer.max_steps", "2", "--trainer.val_check_interval",
                           "2", "--model.init_args.bundle", "trained", "--model.init_args.crop_frames", "64",
                           "--data.init_args.root", corpus, "--data.init_args.clip_samples", "20480",
                           "--data.init_args.batch_size", "4", "--data.init_args.val_clips", "4",
                           "--data.init_args.num_workers", "0")
import musiccm
found["from"] = musiccm.__file__
print("\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as building leaves files beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("src", "experiments"):
        shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    (folder / "tree/src/musiccm/bundles/tiny/__pycache__").mkdir()
    (folder / "tree/src/musiccm/bundles/tiny/__pycache__/stray.pyc").write_bytes(b"")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--wheel-dir", str(folder), str(folder / "tree")],
                   check=True, timeout=120, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def ours(wheel: Path) -> PathDistribution:
    return unpacked(wheel, wheel.parent / "unpacked")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist()}
        recipes = [archive.read(name) for name in files if name.endswith(".yaml")]
    inside = {name for name in files if ".dist-info/" not in name}
    source = ROOT / "src/musiccm"
    kept = {str(path.relative_to(ROOT / "src")) for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    kept |= {f"musiccm/experiments/{path.relative_to(ROOT / 'experiments')}"
             for path in (ROOT / "experiments").rglob("*.yaml")}
    assert inside == kept
    assert len(recipes) == len(set(recipes)), "a file travels twice"
    # tiny and its student; those of TANGO's and of MeLoDy's kind where they were built
    most = 44 + sum(mib for name, mib in {"tiny-tango": 34, "tiny-melody": 40}.items()
                    if f"musiccm/bundles/{name}/musiccm.json" in inside)
    assert 30 * MIB < wheel.stat().st_size < most * MIB
    assert {"musiccm/bundles/tiny/unet/diffusion_pytorch_model.safetensors", "musiccm/py.typed",
            "musiccm/bundles/tiny-student/unet/diffusion_pytorch_model.safetensors"} <= inside


def test_its_metadata(ours: PathDistribution) -> None:
    assert ours.version == musiccm.__version__ and ours.metadata["License"] == "Apache-2.0"
    assert ours.metadata["Author"] and ours.metadata["Requires-Python"] == ">=3.10"
    assert {(point.group, point.name, point.value) for point in ours.entry_points} == {
        ("console_scripts", "musiccm", "musiccm.cli:main")}


@pytest.fixture(scope="module")
def bringers() -> dict[str, set[str]]:
    """What is installed here: distributions by the package that one imports of them."""
    found = {name: {canonicalize_name(dist) for dist in dists} for name, dists in packages_distributions().items()}
    return {"faiss": {"faiss-cpu"}, "av": {"av"}, **found}  # they are not installed everywhere


def imported_libraries() -> set[str]:
    """Packages of others that the source imports, wherever in a file."""
    found: set[str] = set()
    for path in (ROOT / "src/musiccm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"musiccm", "__future__"}


def test_every_import_comes_with_the_plain_install_or_is_in_the_table_of_extras(
    ours: PathDistribution, bringers: dict[str, set[str]]
) -> None:
    plain, imported = required(ours, ()), imported_libraries()
    brought = {name for name in imported if bringers.get(name, set()) & plain}
    assert {"torch", "diffusers", "transformers", "soundfile", "soxr"} <= brought
    assert imported - brought - BY_HAND <= EXTRAS.keys()
    assert not brought & EXTRAS.keys()


def test_the_table_of_extras_is_that_of_the_wheel(ours: PathDistribution, bringers: dict[str, set[str]]) -> None:
    wanted: dict[str, set[str]] = {}
    for requirement in map(Requirement, ours.requires or []):
        for extra in ("train", "eval", "faiss", "formats", "serve"):
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                wanted.setdefault(canonicalize_name(requirement.name), set()).add(extra)
    table: dict[str, set[str]] = {}
    for module, extras in EXTRAS.items():
        (dist,) = bringers[module]
        assert table.setdefault(dist, set(extras)) == set(extras), f"{module} and another module of {dist} differ"
    assert table == wanted


def test_all_is_every_extra_that_users_want(ours: PathDistribution) -> None:
    (everything,) = [requirement for requirement in map(Requirement, ours.requires or [])
                     if requirement.marker is not None and requirement.marker.evaluate({"extra": "all"})]
    assert everything.name == "musiccm" and everything.extras == {"train", "eval", "faiss", "formats", "serve"}


def check(found: dict, where: Path, folder: Path) -> None:
    """What PROGRAM found, and what it left."""
    for name in ("generate", "continue", "evaluate", "fit"):
        assert found[name][0] == 0, found[name][1]
    assert Path(found["from"]).is_relative_to(where)
    figures = json.loads((folder / "made-evaluation.json").read_text())["figures"]
    assert figures["fd_tagger"] == pytest.approx(0.0, abs=1e-3)
    assert (folder / "trained/vae/config.json").is_file()
    (run,) = (folder / "lightning_logs").glob("*/version_0/config.yaml")
    content = yaml.safe_load(run.read_text())
    base = load_experiment(ROOT / "experiments/stages/vae.yaml")
    assert content["experiment"] == base["experiment"] and content["trainer"]["max_steps"] == 2
    assert content["model"]["init_args"]["kl_weight"] == base["model"]["init_args"]["kl_weight"]
    assert content["data"]["init_args"]["seed"] == 0  # of the base's base


def test_each_extra_is_enough_for_its_commands(wheel: Path, ours: PathDistribution, tmp_path: Path) -> None:
    """One process whose libraries grow: those of the plain install, then of `eval`, then of `train` in its place."""
    plain = required(ours, ())
    link(plain, tmp_path / "plain")
    for extra in ("eval", "train"):
        link(required(ours, (extra,)) - plain, tmp_path / extra)
    write_corpus(tmp_path / "corpus")
    arguments = [str(wheel.parent / "unpacked"), "corpus", f"generate={tmp_path / 'plain'}", "refused=",
                 f"evaluate={tmp_path / 'eval'}", f"fit={tmp_path / 'train'}"]
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-S", "-c", PROGRAM, *arguments], cwd=tmp_path, env=keep,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    check(found, wheel.parent, tmp_path)
    assert found["fit refused"] == [2, 'musiccm: fit needs omegaconf, which is not installed: '
                                       'pip install "musiccm[train]"\n']
    assert found["evaluate refused"] == [2, 'musiccm: evaluate needs torchmetrics, which is not installed: '
                                            'pip install "musiccm[eval]"\n']
    assert 'pip install "musiccm[train]"' in found["MusicCM"]
    assert found["lightning"] == []


@pytest.mark.slow
@pytest.mark.skipif("MUSICCM_TEST_PIP" not in os.environ, reason="downloads gigabytes: make test-wheel")
def test_pip_installs_it(wheel: Path, tmp_path: Path) -> None:
    """A virtual environment of its own, filled from the package index: gigabytes, and minutes."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    write_corpus(tmp_path / "corpus")
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    found: dict = {}
    for extra, steps in (("", ("generate=", "refused=")), ("[eval]", ("evaluate=",)), ("[train]", ("fit=",))):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"{wheel}{extra}"], check=True, timeout=1800)
        done = subprocess.run([str(python), "-c", PROGRAM, "", "corpus", *steps], cwd=tmp_path, env=keep,
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout.splitlines()[-1])
    check(found, tmp_path / "venv", tmp_path)
    assert found["fit refused"][0] == found["evaluate refused"][0] == 2
    command = [str(python.with_name("musiccm")), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"musiccm {musiccm.__version__}\n"
