"""`musiccm pack --base`: a bundle that reads tokens, whose autoencoder, vocoder and decoders lie elsewhere."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_tokens import make_t5_tokenizer, make_token_unet, t5_config
from transformers import T5EncoderModel

from musiccm.cli import main
from musiccm.data.latent_cache.fingerprint import bundle_fingerprint
from musiccm.evaluation.clip_features import ClipFeatures, prompt_hash, write_features
from musiccm.evaluation.feature_cache import PACKED, FeatureCache, teacher_hash
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.borrow import begin_bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.guidance_branch import with_guidance_branch
from musiccm.models.tagger import Tagger, TaggerConfig
from musiccm.pipeline import Pipeline
from tests.tiny_bundle import SCHEDULER, build_random_bundle

STAGES = Path(__file__).parents[2] / "experiments/tta/stages"
OWN = {"unet", "text_encoder", "tokenizer", "scheduler", "evaluators"}
BORROWED = ["vae", "vocoder", "decoder", "evaluators/tagger", "evaluators/audiomae"]
SECTIONS = [f"instrument:{name}" for name in (
    "piano", "guitar", "strings", "flute", "clarinet", "organ", "marimba", "bells", "synth lead")] + [
    f"drums:{name}" for name in ("none", "soft", "rock", "dance")]
PROMPT, BPM = "slow organ chords", 100.0


def command(world: Path, *more: str, source: str = "work", to: str = "tiny-tango") -> list[str]:
    bundles = world / "bundles"
    return ["pack", "--from", str(bundles / source), "--to", str(bundles / to), "--corpus", str(world / "corpus"),
            "--name", "musiccm-tiny-tango", *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of events, `bundles/tiny`, what stages left in `bundles/work`, and `bundles/tiny-tango`, packed."""
    folder = tmp_path_factory.mktemp("borrowing")
    assert main(["prepare", "demo", "--world", "events", "--out", str(folder / "corpus"), "--tracks", "2",
                 "--test-tracks", "12", "--validation-tracks", "2", "--workers", "1"]) == 0
    build_random_bundle(folder / "bundles/tiny", frames=32, decoder=True)
    work = folder / "bundles/work"
    begin_bundle(work, "../tiny")
    torch.manual_seed(1)
    tokenizer = make_t5_tokenizer()
    for name, part in {"text_encoder": T5EncoderModel(t5_config(len(tokenizer))), "tokenizer": tokenizer,
                       "unet": make_token_unet(32), "scheduler": SCHEDULER,
                       "evaluators/sections": Tagger(TaggerConfig(tags=SECTIONS))}.items():
        save_part(work, name, part, torch.float16 if name == "text_encoder" else None)  # as the stage writes it
    (work / "quality").mkdir()
    (work / "quality/teacher.json").write_text(json.dumps(
        {"stage": "teacher", "steps": 300, "train_seconds": 5400.0, "parameters": 7, "seed": 4, "n": 9, "mse": 0.25}))
    with pytest.MonkeyPatch.context() as patch:  # librosa's own start takes seconds
        patch.setattr("musiccm.embedders.events.tempo_of", lambda waveform_S, sample_rate_hz: BPM)
        assert main(command(folder, "--base", "../tiny", "--stages", str(STAGES))) == 0
    return folder


def labels(world: Path) -> list[dict]:
    """Of the clips that are measured."""
    names = sorted(path.stem for path in (world / "corpus/test").iterdir())
    return [json.loads((world / f"corpus/label/{name}.json").read_text()) for name in names]


def test_only_its_own_parts_are_written_and_all_are_listed(world: Path) -> None:
    folder = world / "bundles/tiny-tango"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == OWN
    assert [path.name for path in (folder / "evaluators").iterdir()] == ["sections"]
    base = json.loads((folder / "musiccm.json").read_text())["base"]
    assert base["path"] == "../tiny" and base["parts"] == BORROWED
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DiffusionPipeline" and index["vae"] == ["diffusers", "AutoencoderKL"]
    assert "feature_extractor" not in index
    precision = json.loads((folder / "quality.json").read_text())["precision"]
    assert precision.keys() == {"unet", "text_encoder", "evaluators/sections"}
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{precision['unet']['dtype']}"}
    packed, work, tiny = (Bundle.from_pretrained(world / "bundles" / name) for name in ("tiny-tango", "work", "tiny"))
    assert bundle_fingerprint(packed) == bundle_fingerprint(work), "its latent cache serves both"
    assert packed.root_of("vae").resolve() == tiny.path.resolve() and packed.gives_tokens
    assert torch.equal(packed.text_encoder.state_dict()["shared.weight"],
                       work.text_encoder.state_dict()["shared.weight"])


def test_figures_of_events_are_counted_from_the_labels(world: Path) -> None:
    quality = json.loads((world / "bundles/tiny-tango/quality.json").read_text())
    asked = [label["original_data"]["attributes"] for label in labels(world)]
    found = quality["figures"]
    for title in ("events_accuracy", "reconstruction_events_accuracy", "fast_reconstruction_events_accuracy"):
        figures = found[title]
        assert figures["n"] == len(asked) == 12
        for group in ("order", "count", "tempo_bpm"):
            assert figures.get(f"{group}_n", 0) == sum(group in stated for stated in asked), group
        bpm = [float(stated["tempo_bpm"]) for stated in asked if "tempo_bpm" in stated]
        near = [any(abs(BPM * factor / one - 1) <= 0.06 for factor in (0.5, 1, 2)) for one in bpm]
        assert figures["tempo_bpm"] == pytest.approx(sum(near) / len(near))
    assert found["tagger_accuracy"]["n"] == 12 and found["fd_tagger"]["n"] == 6
    assert not {"clap", "text_audio"} & found.keys(), "there is no CLAP"


def test_the_card_says_what_captions_may_ask_for_and_where_the_rest_lies(world: Path) -> None:
    folder = world / "bundles/tiny-tango"
    card, quality = (folder / "MODEL_CARD.md").read_text(), json.loads((folder / "quality.json").read_text())
    for label in labels(world)[:6]:
        assert f"- {label['text'][0]}\n" in card
    for stated in ("one to three events", "beats a minute (66 to 160)", "read as tokens", "- world: events",
                   "`../tiny` lends vae, vocoder, decoder, evaluators/tagger, evaluators/audiomae",
                   "300 of 10000 planned", "| tta/stages/teacher |", "- test_tracks: 12", "SIM_AA is not measured"):
        assert stated in card, stated
    assert quality["stages"]["teacher"]["recipe"] == "tta/stages/teacher" and not (folder / "recipe").exists()


def test_packaged_names_lead_through_the_teacher_to_what_it_borrows(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installation: the two bundles beside `tiny`, by their names."""
    find = importlib.resources.files
    monkeypatch.setattr(importlib.resources, "files", lambda name: world if name == "musiccm" else find(name))
    teacher = Bundle.from_pretrained("musiccm-tiny-tango")
    info = StudentInfo("v_prediction", 3.0, guidance="variable")
    folder = world / "bundles/tiny-tango-student"
    export_student(with_guidance_branch(teacher.unet, 0, "x"), teacher, folder, info, torch.float16, "../tiny-tango",
                   overwrite=True)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"unet", "scheduler"}
    student = Pipeline.from_pretrained("musiccm-tiny-tango-student")
    roots = {name: student.bundle.root_of(name).resolve().name for name in (
        "unet", "text_encoder", "evaluators/sections", "vae", "decoder", "evaluators/tagger")}
    assert roots == {"unet": "tiny-tango-student", "text_encoder": "tiny-tango", "evaluators/sections": "tiny-tango",
                     "vae": "tiny", "decoder": "tiny", "evaluators/tagger": "tiny"}
    assert student(PROMPT, 1).shape == (1, 81920)
    out = tmp_path / "a.wav"
    assert main(["generate", PROMPT, "--model", "musiccm-tiny-tango-student", "--steps", "1", "--guidance-scale", "2",
                 "--out", str(out)]) == 0
    assert out.is_file()


def test_features_of_its_clips_are_found_again(world: Path, tmp_path: Path) -> None:
    folder = world / "bundles/tiny-tango"
    key = {"teacher": teacher_hash(Bundle.from_pretrained(folder)), "decoder": "fast"}
    rows = torch.eye(3)
    for name, about in (("own", key), ("other", {**key, "teacher": "another"})):
        write_features(tmp_path / f"{name}.safetensors", ClipFeatures(["a", "b", "c"], {}, rows), [PROMPT] * 3,
                       {"key": about, "calls": None})
    assert main(["pack", "features", "--from", str(tmp_path), "--to", str(folder)]) == 0
    assert len(list((folder / PACKED).iterdir())) == 1
    found = FeatureCache(None, folder / PACKED).get(key, ["b"], [prompt_hash(PROMPT)])
    assert found is not None and torch.equal(found.features.clap_ND, rows[1:2])
    assert found.source == "bundle"


def test_a_base_that_is_not_what_was_trained_with_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_random_bundle(world / "bundles/other", frames=32, decoder=True, seed=1)
    for more, source, expected in (
        (["--base", "../other"], "work", "base '../other': its parts are not those of"),
        (["--base", "../tiny"], "other", "borrows no parts"),
        (["--base", "somewhere/else/x"], "work", "the base is 'somewhere/else/x'"),
        (["--base", "../tiny", "--trained-on", "tta/stages/teacher"], "work", "--trained-on"),
    ):
        assert main(command(world, *more, source=source, to="refused")) == 2
        assert expected in capsys.readouterr().err
        assert not (world / "bundles/refused").exists()
