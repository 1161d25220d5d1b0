"""The full-size run says what the paper says, and its ablations differ from it in one thing each."""

from datetime import timedelta
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.strategies import DDPStrategy, Strategy
from transformers import ClapConfig, ClapModel

from musiccm.config import load_experiment
from musiccm.data.corpora.registry import parse_corpora
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.conditioners.text_encoder import check_attends
from musiccm.models.fast_decoder import FastDecoderConfig
from musiccm.samplers import Lcm
from musiccm.systems.clap_tuned import ClapTerm
from musiccm.systems.clap_tuning import ClapTuning
from musiccm.systems.consistency_tta import ConsistencyTTA
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.sharded import Sharded

FOLDER = Path(__file__).parents[1] / "experiments"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{path}.{name}").items()}


def settings(name: str) -> tuple[dict[str, Any], Distillation, Adversarial, Optimization]:
    content = load_experiment(FOLDER / name)
    model = content["model"]["init_args"]
    stated = dict(model["distillation"])
    stated["curriculum"] = [Phase(**phase) for phase in stated["curriculum"]]
    found = Distillation(**stated), Adversarial(**model["adversarial"]), Optimization(**model["optimization"])
    for part in found:
        part.check()
    return content, *found


def test_the_papers_settings() -> None:
    content, distillation, adversarial, optimization = settings("musiccm.yaml")
    (phase,) = distillation.curriculum
    assert (phase.skip, phase.jumps, distillation.grid_points) == (20, 1, 50)
    assert (distillation.weight, distillation.guidance_scale, distillation.target_ema_decay) == (3.0, 3.0, 0.95)
    assert (distillation.tail, distillation.solver) == (0.0, "ddim")
    assert (adversarial.features, adversarial.weight) == ("audiomae", 1.0)
    assert optimization.lr == 1e-5 and optimization.decay_share == 0.0
    assert content["trainer"]["precision"] == "bf16-mixed"
    data = content["data"]["init_args"]
    assert data["clip_samples"] == round(10.24 * 16000)
    corpora = parse_corpora(data["corpora"])
    assert [corpus.layout for corpus in corpora] == ["audiostock", "magnatagatune"]
    assert data["corpora"][1]["draw"] == 5000
    # the paper's test set, and what it looks for copies in, with the other corpus beside it
    assert [corpus.test for corpus in corpora] == [1000, 0]
    (evaluation,) = (c["init_args"] for c in content["trainer"]["callbacks"] if c["class_path"].endswith("Evaluation"))
    assert evaluation["limit"] == 1000 and evaluation["galleries"] == [corpus.name for corpus in corpora]


def test_the_full_size_decoder_is_that_of_the_released_latents() -> None:
    """8 channels, 64 mel bins / 4, 160 samples a mel frame x 4; clips of whole latent frames."""
    content = load_experiment(FOLDER / "musiccm_decoder.yaml")
    config = FastDecoderConfig(**content["model"]["init_args"]["decoder"])
    assert config == FastDecoderConfig() and (config.latent_bins, config.latent_hop) == (64 // 4, 160 * 4)
    assert content["data"]["init_args"]["clip_samples"] % config.latent_hop == 0
    assert content["model"]["class_path"] == load_experiment(FOLDER / "stages/decoder.yaml")["model"]["class_path"]


def test_the_main_run_is_launched_as_the_preset_says() -> None:
    run, preset = (load_experiment(FOLDER / name)["trainer"] for name in ("musiccm.yaml", "strategies/ddp.yaml"))
    assert run["strategy"] == preset["strategy"] and run["devices"] == 8
    assert preset["strategy"]["init_args"]["gradient_as_bucket_view"]


@pytest.mark.parametrize("name", ["demo.yaml", "demo_long.yaml", "smoke.yaml", "musiccm.yaml"])
def test_callbacks_are_built_with_their_samplers_and_as_version_0_1_states_them(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf+")
    parser.add_subclass_arguments(Callback, "callback")
    gamma = {"demo.yaml": 0.8, "demo_long.yaml": 0.6}.get(name, 1.0)
    found = {c["class_path"].rsplit(".")[-1]: c for c in load_experiment(FOLDER / name)["trainer"]["callbacks"]}
    for kind in ("Panels", "Evaluation"):
        now, before = found[kind], {"class_path": found[kind]["class_path"], "init_args": {"gamma": 0.25}}
        now["init_args"].pop("guidance_scale", None)
        if kind == "Evaluation":
            before["init_args"] |= {"shipped_student": "musiccm-tiny-student", "kad": []}
        for spec, expected in ((now, Lcm(gamma)), (before, Lcm(0.25))):
            parsed = parser.parse_object({"callback": spec})
            made = parser.instantiate_classes(parsed).callback
            assert made.sampler == expected
            # what a run keeps in its config.yaml is read again
            kept = parser.parse_string(parser.dump(parsed))
            assert parser.instantiate_classes(kept).callback.sampler == expected
    assert made.packaged_student == "musiccm-tiny-student"


@pytest.mark.parametrize(("name", "kind"), [("ddp", DDPStrategy), ("fsdp", Sharded)])
def test_presets_build_strategies_that_wait_ten_minutes_for_a_process(name: str, kind: type) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Strategy, "strategy")
    preset = load_experiment(FOLDER / "strategies" / f"{name}.yaml")["trainer"]
    strategy = parser.instantiate_classes(parser.parse_object({"strategy": preset["strategy"]})).strategy
    assert type(strategy) is kind and strategy._timeout == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("name", "base", "differences"),
    [
        ("musiccm_no_adversarial", "musiccm", {".adversarial.weight": 0.0}),
        ("musiccm_clap_features", "musiccm", {".adversarial.features": "clap"}),
        ("musiccm_v_student", "musiccm", {".distillation.prediction_type": "v_prediction",
                                          ".distillation.warm_start_steps": 2000}),
        ("no_adversarial", "demo", {".adversarial.weight": 0.0}),
        ("discriminator_half_clip", "demo", {".adversarial.crop_frames": 16}),
        ("discriminator_whole_clip", "demo", {".adversarial.crop_frames": None}),
        ("adversarial_clap", "demo", {".adversarial.features": "clap"}),
        ("paper_recipe_epsilon", "ablations/paper_recipe", {".bundle": "data/bundle-epsilon",
                                                            ".distillation.prediction_type": "epsilon"}),
    ],
)
def test_an_ablation_differs_in_one_thing(name: str, base: str, differences: dict[str, Any]) -> None:
    before, ours = flat(load_experiment(base)), flat(settings(f"ablations/{name}.yaml")[0])
    assert ours[".experiment"] == name
    stated = {f".model.init_args{key}": value for key, value in differences.items()}
    assert {key: ours[key] for key in stated} == stated
    keys = {key for key in before.keys() | ours.keys() if before.get(key) != ours.get(key)}
    assert keys <= stated.keys() | {".experiment", ".data.init_args.bundle"}


@pytest.mark.parametrize(
    ("name", "base", "differences"),
    [
        ("fixed", "theirs", {".distillation.guidance": "fixed"}),
        ("fixed1", "fixed", {".distillation.guidance_scale": 1.0}),
        ("fixed5", "fixed", {".distillation.guidance_scale": 5.0}),
        ("direct", "theirs", {".distillation.guidance": "direct"}),
        ("ddim", "theirs", {".distillation.solver": "ddim"}),
        ("uniform", "theirs", {".intervals.weighting": "uniform"}),
        ("tail", "theirs", {".intervals.weighting": "tail"}),
        ("v_head", "theirs", {".distillation.prediction_type": "v_prediction"}),
        ("ours", "theirs", {".distillation.prediction_type": "v_prediction", ".distillation.solver": "ddim",
                            ".intervals.weighting": "tail"}),
        ("ours_heun", "ours", {".distillation.solver": "heun"}),
        ("ours_snr", "ours", {".intervals.weighting": "snr"}),
        ("ours_uniform", "ours", {".intervals.weighting": "uniform"}),
        ("ours_fixed", "ours", {".distillation.guidance": "fixed"}),
        ("ours_direct", "ours", {".distillation.guidance": "direct"}),
        ("clap", "longer", {".clap.weight": 0.1, ".clap.network": "musiccm-tiny", ".clap.decoder": "fast"}),
    ],
)
def test_a_row_of_consistencyttas_ablation_differs_in_what_it_is_named_after(
    name: str, base: str, differences: dict[str, Any]
) -> None:
    before, ours = (flat(load_experiment(f"tta/ablations/{which}")) for which in (base, name))
    stated = {f".model.init_args{key}": value for key, value in differences.items()}
    assert {key: ours[key] for key in stated} == stated
    keys = {key for key in before.keys() | ours.keys() if before.get(key) != ours.get(key)}
    # what CLAP tunes by may not score
    assert keys == stated.keys() | {".experiment"} | ({".trainer.callbacks"} if name == "clap" else set())


def test_the_full_size_student_starts_as_its_teacher_does() -> None:
    """MusicLDM predicts epsilon: a student that predicts something else has to be moved there first."""
    _, distillation, _, _ = settings("musiccm.yaml")
    assert (distillation.prediction_type, distillation.warm_start_steps) == ("epsilon", 0)
    _, distillation, _, _ = settings("ablations/musiccm_v_student.yaml")
    assert distillation.warm_start_steps > 0


def test_the_papers_recipe_is_its_start_its_jumps_and_its_timesteps() -> None:
    """The student starts as the teacher: the same prediction type, and no step of regression."""
    content, distillation, _, _ = settings("ablations/paper_recipe.yaml")
    bundle = Bundle.from_pretrained(content["model"]["init_args"]["bundle"], parts=["scheduler"])
    assert distillation.prediction_type == bundle.prediction_type and distillation.warm_start_steps == 0
    (phase,) = distillation.curriculum
    assert (phase.skip, phase.jumps, distillation.timestep_mode, distillation.tail) == (20, 1, "uniform", 0.0)
    assert distillation.start is None and distillation.target_ema_decay == 0.95
    teacher = load_experiment("stages/teacher_epsilon")["model"]["init_args"]
    epsilon = load_experiment("ablations/paper_recipe_epsilon")["model"]["init_args"]
    assert teacher["scheduler"]["prediction_type"] == epsilon["distillation"]["prediction_type"] == "epsilon"
    assert teacher["bundle"] == epsilon["bundle"]


@pytest.mark.parametrize("name", ["lcm", "musiccm", "cmt", "pcm"])
def test_an_objectives_experiment_names_its_class_and_arguments_that_it_takes(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    content = load_experiment(f"objectives/{name}")
    model = parser.parse_object({"model": content["model"]}).model
    assert model.class_path.rpartition(".")[-1].lower() == name
    assert (FOLDER.parent / f"docs/objectives/{name}.md").is_file()
    # by the same budget and on the same data, unless the objective needs others
    demo = load_experiment("demo")
    changed = {key for key in ("max_steps", "val_check_interval") if content["trainer"][key] != demo["trainer"][key]}
    assert not changed or name == "cmt"
    own = {key for key, value in content["data"]["init_args"].items() if demo["data"]["init_args"].get(key) != value}
    assert own == ({"trajectories_dir"} if name == "cmt" else set())


def test_the_papers_recipe_on_music_that_can_be_had_differs_in_its_data() -> None:
    paper, ours = flat(load_experiment(FOLDER / "musiccm.yaml")), flat(settings("jamendo.yaml")[0])
    differing = {key for key in paper.keys() | ours.keys() if paper.get(key) != ours.get(key)}
    data = {f".data.init_args.{key}" for key in ("corpora", "cache_dir", "windows_per_track")}
    assert differing == data | {".trainer.callbacks", ".experiment"}
    (corpus,) = parse_corpora(ours[".data.init_args.corpora"])
    assert (corpus.layout, corpus.test) == ("jamendo", None)


def test_attm_keeps_to_the_rules() -> None:
    """One corpus, fewer than 500 M parameters, and no network of the loss that saw other music (docs/attm.md)."""
    teacher, student, second = (load_experiment(FOLDER / f"{name}.yaml")
                                for name in ("attm_teacher", "attm", "attm_dmd2"))
    for content in (teacher, student, second):
        (corpus,) = parse_corpora(content["data"]["init_args"]["corpora"])
        assert (corpus.layout, corpus.options["audio"]) == ("jamendo", "instrumental")
        assert content["data"]["init_args"]["clip_samples"] == round(10.24 * 16000)
        assert content["model"]["init_args"]["bundle"] == "data/attm"
    caches = {content["data"]["init_args"]["cache_dir"] for content in (teacher, student, second)}
    assert len(caches) == 1
    with torch.device("meta"):
        unet = UNet2DConditionModel(**teacher["model"]["init_args"]["unet"])
    assert 185.0e6 < sum(parameter.numel() for parameter in unet.parameters()) < 185.1e6
    settings("attm.yaml")
    assert student["model"]["init_args"]["adversarial"]["weight"] == 0.0
    assert "adversarial" not in second["model"]["init_args"]
    predicted = teacher["model"]["init_args"]["scheduler"]["prediction_type"]
    assert {content["model"]["init_args"]["distillation"]["prediction_type"] for content in (student, second)} == {
        predicted}


def test_clap_tuning_is_the_last_stage_of_its_paper_and_is_scored_by_another_clap() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    for name, objective in (("clap_tuning", ConsistencyTTA), ("clap_tuning_demo", ClapTuning)):
        content = load_experiment(f"tta/{name}")
        model = parser.parse_object({"model": content["model"]}).model
        assert model.class_path == f"{objective.__module__}.{objective.__name__}"
        objective.check_experiment({**content, "subcommand": "fit", "ckpt_path": "last.ckpt"})
        stated = dict(load_experiment(f"tta/{name}")["model"]["init_args"]["distillation"])
        if "curriculum" in stated:
            stated["curriculum"] = [Phase(**phase) for phase in stated["curriculum"]]
        distillation = Distillation(**stated)
        distillation.check()
        ClapTerm(**content["model"]["init_args"]["clap"]).check()
        assert distillation.start is not None and content["model"]["init_args"]["clap"]["weight"] == 0.1
    theirs, optimization = load_experiment("tta/clap_tuning"), Optimization(
        **load_experiment("tta/clap_tuning")["model"]["init_args"]["optimization"])
    optimization.check()
    assert (theirs["data"]["init_args"]["batch_size"], optimization.accumulate) == (3, 15), "2 clips, a mixture"
    assert theirs["data"]["init_args"]["mixtures"] == 0.5
    assert (optimization.lr, optimization.warmup_steps, optimization.weight_decay) == (1e-6, 250, 1e-4)
    assert (theirs["trainer"]["max_epochs"], theirs["trainer"]["max_steps"]) == (10, -1)
    assert (theirs["model"]["init_args"]["distillation"]["target_ema_decay"],
            theirs["model"]["init_args"]["distillation"]["eval_ema_decay"]) == (0.95, 0.999)


def test_the_second_clap_is_as_small_as_the_first_and_shares_neither_seed_nor_clips() -> None:
    first, second = (load_experiment(f"stages/{name}") for name in ("clap", "clap_second"))
    settings = second["model"]["init_args"]
    config = ClapConfig(text_config=settings["text"], audio_config=settings["audio"],
                        projection_dim=settings["projection_dim"])
    with torch.device("meta"):
        network = ClapModel(config)
    assert 2 * sum(p.numel() for p in network.parameters()) < 4e6, "bytes in half precision"
    for section, key in (("model", "seed"), ("data", "seed"), ("data", "root")):
        assert second[section]["init_args"][key] != first[section]["init_args"].get(key, 0), key
    differing = {"seed": 1, "second": True}
    assert settings == first["model"]["init_args"] | differing


def test_the_small_tango_attends_to_its_own_text_encoder_and_fits_its_bundle() -> None:
    teacher, text, sections = (load_experiment(f"tta/stages/{name}") for name in ("teacher", "text", "sections"))
    unet = teacher["model"]["init_args"]["unet"]
    check_attends(unet, text["model"]["init_args"]["text"]["d_model"], "tta/stages/teacher")
    with torch.device("meta"):
        network = UNet2DConditionModel(**unet)
    assert 2 * sum(p.numel() for p in network.parameters()) <= 12e6, "bytes in half precision"
    assert sum("attn2.to_k" in name for name, _ in network.named_parameters()) == 2 + 1 + 4, "tokens at every level"
    assert teacher["model"]["init_args"]["scheduler"]["prediction_type"] == "v_prediction"
    assert {part["model"]["init_args"]["bundle"] for part in (teacher, text, sections)} == {"data/bundle-tango"}
    assert teacher["data"]["init_args"]["root"] == sections["data"]["init_args"]["root"] == "data/events-corpus"


@pytest.mark.parametrize("name", ["dmd2", "f_distill", "arc", "ladd"])
def test_an_objective_that_goes_on_from_a_student_wants_it_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**load_experiment(f"objectives/{name}"), "subcommand": "fit"}
    objective = locate(content["model"]["class_path"])
    start = Path(content["model"]["init_args"]["distillation"]["start"])
    with pytest.raises(MusiccmError, match="distillation.start: .*no such checkpoint"):
        objective.check_experiment(content)
    objective.check_experiment({**content, "ckpt_path": "last.ckpt"})  # a run that goes on does not read it
    start.parent.mkdir(parents=True)
    start.touch()
    objective.check_experiment(content)
    assert not caplog.text
    group = content["model"]["init_args"].setdefault(objective.group, {})
    with pytest.raises(MusiccmError, match=f"{objective.group}.critic_start: gone.ckpt: no such checkpoint"):
        group["critic_start"] = "gone.ckpt"
        objective.check_experiment(content)
    del group["critic_start"]
    group["sampler"] = {"name": "lcm", "gamma": 0.3}
    objective.check_experiment(content)
    assert "rolled out by" in caplog.text and "0.3" in caplog.text
