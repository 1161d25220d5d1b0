"""The table of compared models, and what measures them, on a bundle with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from tiny_bundle import build_random_bundle, make_clap, make_feature_extractor
from tiny_system import SAMPLES, Clips, Data, System
from torch import Tensor

from musiccm.audio.io import read_audio
from musiccm.callbacks.evaluation import Evaluation
from musiccm.callbacks.panels import Panels
from musiccm.commands.tables import paper_tables
from musiccm.diffusion import Condition, sampling_timesteps, with_guidance
from musiccm.errors import MusiccmError
from musiccm.evaluation import candidates as table
from musiccm.evaluation.candidates import (
    MODELS,
    ComparedModel,
    Comparison,
    candidate_of,
    candidates,
    initial_noise,
)
from musiccm.evaluation.distilled import SystemStudent, as_distilled
from musiccm.evaluation.result_plots import plot_metric
from musiccm.evaluation.results import format_table, sort_rows
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Denoiser
from musiccm.pipeline import Pipeline
from musiccm.samplers import DpmSolver, Heun, Lcm, Tcd, trailing_timesteps


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle"), frames=8)


@pytest.fixture(scope="module")
def system(bundle: Path) -> System:
    return System(bundle)


def run(folder: Path, system: System, **options: Any) -> dict[str, Any]:
    """The results.json of an evaluation, without the floor's row."""
    evaluation = Evaluation(**{"steps": [1], "teacher_steps": [], "limit": 4, "batch_size": 4,
                               "n_panels": 4, "panel_labels": ["student@1"], "progress": False, **options})
    trainer = pl.Trainer(default_root_dir=folder, logger=CSVLogger(str(folder), "runs", "v"), callbacks=[evaluation],
                         accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.test(system, Data(), verbose=False)
    found = json.loads((folder / "runs" / "v" / "results.json").read_text())
    assert found["rows"][0]["model"] == "floor"
    return {**found, "rows": found["rows"][1:]}


def test_a_fifth_model_is_one_row(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second student, sampled in another way: it is made, sorted, drawn, printed and laid out under its caption."""
    second = ComparedModel("second", "second student", "*", lambda asked: SystemStudent(asked.system, "tcd"))
    monkeypatch.setitem(MODELS, second.name, second)
    found = run(tmp_path, system, more_models={"second": [2], "teacher_dpm": [2]}, teacher_steps=[2])
    rows = {row["model"]: row for row in found["rows"]}
    assert list(rows) == ["teacher", "teacher_dpm", "student", "second"]
    assert [row["sampler"] for row in rows.values()] == ["ddim", "dpm-solver++", "lcm, gamma 1", "tcd, gamma 0.3"]
    assert rows["teacher"]["network_calls"] == rows["teacher_dpm"]["network_calls"] == 4, "a baseline of equal calls"
    assert rows["teacher"]["fd_tagger"] != rows["teacher_dpm"]["fd_tagger"]
    assert "second student" in paper_tables({**found, "path": tmp_path / "v" / "results.json"}, {})
    with pytest.raises(MusiccmError, match="expected names among teacher, .*found third"):
        Evaluation(more_models={"third": [1]})
    with pytest.raises(MusiccmError, match="the steps of teacher are evaluation.teacher_steps"):
        Evaluation(more_models={"teacher": [1]})
    with pytest.raises(MusiccmError, match=r"evaluation.more_models.second: expected at most 50, .* found 51"):
        run(tmp_path / "no", system, more_models={"second": [51]})


def test_rows_of_other_versions_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(model: str, fd: float) -> dict:
        return {"model": model, "steps": 4, "network_calls": 4, "fd_tagger": fd, "ta_similarity": None,
                "sim_aa_90": None, "sim_aa_95": None, "n": 9}

    rows = [row("from_elsewhere", 3.0), row("student_shipped", 2.0), row("student_fast", 1.5), row("teacher", 1.0)]
    assert [r["model"] for r in sort_rows(rows)] == ["student_fast", "teacher", "student_shipped", "from_elsewhere"]
    cells = [line.split() for line in format_table(rows, {}).splitlines() if " 4 " in line and " 9" in line]
    assert [(line[0], line[5]) for line in cells] == [
        ("student", "-"), ("teacher", "1.00"), ("student_packaged", "2.00"), ("from_elsewhere", "3.00")
    ], "another decoder has no ratio"
    legends: list[list[str]] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: Any, **kwargs: Any) -> None:
        legends.append([text.get_text() for text in figure.legends[0].get_texts()])
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)
    plot_metric(tmp_path / "fd.png", rows, "fd_tagger")
    assert legends == [["teacher@4", "teacher, DDIM", "packaged student", "from_elsewhere"]]


def test_each_model_is_sampled_by_its_rule(system: System) -> None:
    """Against the samplers themselves, over the networks called by hand; a second-order step costs its calls."""
    noise, cond = initial_noise([1, 2], (4, 8, 4), "cpu"), system.conditioner.text(["slow organ chords", "a tune"])
    made = {c.label: c for c in candidates(Comparison(system, {"name": "lcm", "gamma": 0.0}, 2.0), {
        "teacher": [2], "teacher_heun": [2], "teacher_dpm": [3], "student": [2], "student_packaged": [1]})}
    assert list(made) == ["teacher@2", "teacher_heun@2", "teacher_dpm@3", "student@2"]
    guided = with_guidance(system.teacher, cond, system.conditioner.null(2), 2.0)

    def student(z: Tensor, t: Tensor) -> Tensor:
        return system.consistency("slow")(z, t, cond)

    with torch.no_grad():
        for label, expected, calls in (
            ("teacher_heun@2", Heun().sample(guided, system.schedule, noise, trailing_timesteps(2, 1000)), 2 * 3),
            ("teacher_dpm@3", DpmSolver().sample(guided, system.schedule, noise, trailing_timesteps(3, 1000)), 2 * 3),
            ("student@2", Lcm(0.0).sample(student, system.schedule, noise,
                                          sampling_timesteps(2, system.grid).tolist()), 2),
        ):
            assert torch.equal(made[label].sample(cond, noise, [1, 2]), expected), label
            assert made[label].calls.samples == 2 * calls and made[label].guidance_scale == (
                2.0 if "teacher" in label else None)


def test_a_pipeline_is_a_candidate_without_any_distillation(bundle: Path, tmp_path: Path) -> None:
    teacher = Bundle.from_pretrained(bundle)
    pipeline = Pipeline.from_pretrained(
        export_student(teacher.unet, teacher, tmp_path / "s", StudentInfo("epsilon", 3.0, sampler="tcd")))
    candidate = candidate_of(pipeline, "mine", 2)
    cond = candidate.encode(["slow organ chords"])
    made = candidate.sample(cond, initial_noise([7], candidate.latent_shape, "cpu"), [7])
    assert torch.equal(made, pipeline.latents(cond, [7], 2)) and candidate.calls.samples == 2
    assert candidate.sampler == Tcd() and json.loads((tmp_path / "s" / "musiccm.json").read_text())["distillation"][
        "sampler"] == {"name": "tcd", "gamma": 0.3}
    content = json.loads((tmp_path / "s" / "musiccm.json").read_text())
    for stated, message in (("euler", "found 'euler'"), ({"name": "lcm", "gamma": "much"}, r"\[0, 1\], found 'much'"),
                            ("heun", "distilled student, which ddim, lcm, tcd sample"), ([1], "found .1.")):
        content["distillation"]["sampler"] = stated
        (tmp_path / "s" / "musiccm.json").write_text(json.dumps(content))
        with pytest.raises(MusiccmError, match=rf"musiccm.json: distillation: .*{message}"):
            Pipeline.from_pretrained(tmp_path / "s")


def test_gamma_of_version_0_1_is_a_field_of_the_sampler() -> None:
    for kind, where in ((Evaluation, "evaluation"), (Panels, "panels")):
        assert kind(gamma=0.6).sampler == kind(sampler={"name": "lcm", "gamma": 0.6}).sampler == Lcm(0.6)
        assert kind().sampler == Lcm(1.0)
        with pytest.raises(MusiccmError, match=rf"{where}\.gamma: is a field of the sampler.*and leave gamma out"):
            kind(gamma=0.6, sampler="tcd")
        with pytest.raises(MusiccmError, match=rf"{where}\.sampler: the model is a distilled student, .* found heun"):
            kind(sampler="heun")
    old = Evaluation(shipped_student="x", panel_labels=["student_shipped@4"])
    assert (old.packaged_student, old.panel_labels) == ("x", ["student_packaged@4"])
    assert table.compared_model("student_shipped").caption == "packaged student"


def test_a_packaged_student_of_another_decoder_is_left_out_by_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = System(build_random_bundle(tmp_path / "teacher", frames=8, decoder=True))
    export_student(system.bundle.unet, system.bundle, tmp_path / "s", StudentInfo("epsilon", 3.0))
    asked = Comparison(system, packaged=tmp_path / "s")
    (alike,) = candidates(asked, {"student_packaged": [1]})
    assert list(alike.decoders) == ["fast", "original"]
    weights = tmp_path / "s" / "decoder" / "model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(weights).items()}, weights)
    (other,) = candidates(asked, {"student_packaged": [1]})
    assert list(other.decoders) == ["original"]
    assert "student_packaged is left out by fast" in caplog.text


def test_a_system_without_what_is_needed_is_named() -> None:
    with pytest.raises(MusiccmError, match="LightningModule has no bundle, codec, .*DistilledSystem"):
        as_distilled(pl.LightningModule())


class Letters(torch.nn.Module):
    """Conditions by tokens, one a letter, and embeds no audio."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, self.width)

    def text(self, texts: list[str]) -> Condition:
        longest = max(1, *map(len, texts))
        codes = torch.tensor([[ord(letter) for letter in text.ljust(longest)] for text in texts])
        mask = torch.tensor([[place < max(1, len(text)) for place in range(longest)] for text in texts])
        return Condition(self.table(codes), mask)

    def null(self, batch: int) -> Condition:
        return self.text([""] * batch)


class TokenSystem(System):
    """Teacher and student attend to tokens; the bundle's CLAP has no part in them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=[8, 4], in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8, attention_head_dim=(1, 2),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=Letters.width)
        self.conditioner, self.teacher = Letters(), Denoiser(unet.requires_grad_(False), self.schedule, "epsilon")


def similarity(embed_text: Any, embed_audio: Any, folder: Path) -> float:
    """Text-audio similarity of the written samples, by hand."""
    clips = [Clips()[i] for i in range(4)]
    sounds = [read_audio(folder / "runs" / "v" / "samples" / f"clip_{i}_student_1.wav")[0] for i in range(4)]
    audio, text = embed_audio(torch.stack(sounds)), embed_text([clip["caption"] for clip in clips])
    return float(torch.nn.functional.cosine_similarity(text, audio).mean())


def test_a_model_that_takes_tokens_is_measured_by_clap(bundle: Path, tmp_path: Path) -> None:
    system = TokenSystem(bundle)
    found = run(tmp_path / "own", system, teacher_steps=[1])
    clap = Bundle.from_pretrained(bundle).conditioner()
    expected = similarity(clap.text, lambda waves: clap.audio(waves, 16000), tmp_path / "own")
    assert found["rows"][1]["ta_similarity"] == pytest.approx(expected, abs=2e-3)  # files have 16 bits
    assert found["rows"][0]["ta_similarity"] is not None and found["text_audio"] == "bundle_clap"
    assert found["rows"][1]["sim_aa_90"] is not None

    # another CLAP, as a folder in transformers' layout; SIM_AA stays with the bundle's, which embedded the training set
    other = tmp_path / "other"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = make_clap(len(clap.tokenizer), cond_width=24)
    for part in (network, clap.tokenizer, make_feature_extractor()):
        part.save_pretrained(other)
    again = run(tmp_path / "again", system, text_audio=str(other))
    from musiccm.embedders.clap import ClapEmbedder, conditioner_from_folder

    embedder = ClapEmbedder(conditioner_from_folder(str(other)))
    expected = similarity(embedder.text, lambda waves: embedder(waves, 16000).embedding_RE, tmp_path / "again")
    (row,) = again["rows"]
    assert row["ta_similarity"] == pytest.approx(expected, abs=2e-3) and again["text_audio"] == str(other)
    # the weights tell networks apart, whatever they are called
    assert again["text_audio_fingerprint"] == embedder.fingerprint != found["text_audio_fingerprint"]
    assert re.fullmatch("[0-9a-f]{64}", found["text_audio_fingerprint"])
    assert abs(row["ta_similarity"] - found["rows"][1]["ta_similarity"]) > 0.01
    assert row["sim_aa_90"] == found["rows"][1]["sim_aa_90"]
    assert "test_set_ta" in again["references"] and "retrieval_max_ta" not in again["references"]


def test_without_a_clap_text_audio_similarity_is_left_out_and_one_line_says_so(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = TokenSystem(bundle)
    has = Bundle.has
    monkeypatch.setattr(Bundle, "has", lambda self, part: part != "text_encoder" and has(self, part))
    found = run(tmp_path, system)
    (row,) = found["rows"]
    assert row["ta_similarity"] is None and row["sim_aa_90"] is None and row["fd_tagger"] > 0
    assert found["text_audio"] is None and "test_set_ta" not in found["references"]
    said = [message for message in caplog.messages if "text-audio similarity" in message]
    assert len(said) == 1 and "text-audio similarity is left out: " in said[0]
    assert "text-audio similarity is left out" in (tmp_path / "runs" / "v" / "results.txt").read_text()
    assert SAMPLES == read_audio(tmp_path / "runs" / "v" / "samples" / "clip_0_student_1.wav")[0].shape[-1]
    with pytest.raises(MusiccmError, match="evaluation.text_audio: .*nowhere"):
        run(tmp_path / "no", system, text_audio=str(tmp_path / "nowhere.pt"))
