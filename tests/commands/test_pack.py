"""`musiccm pack` on a bundle with random weights: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from musiccm.cli import main
from musiccm.commands._measured_bundle import check_results_of
from musiccm.commands._precision import choose, half_rounded, relative_change
from musiccm.commands.pack import stage_records
from musiccm.config import load_experiment
from musiccm.evaluation.bundle_quality import quality_of
from musiccm.evaluation.feature_cache import decoder_hashes, teacher_hash
from musiccm.files import replacing_folder
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import resolve_bundle
from musiccm.models.bundle.training_words import TrainingWords, write_words
from musiccm.similarity.clap_windows import CLAP_PARTS
from musiccm.similarity.index import TrainingIndex
from tests.tiny_bundle import CAPTIONS, build_random_bundle


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    assert main(["prepare", "demo", "--out", str(folder / "corpus"), "--tracks", "10", "--test-tracks", "12",
                 "--seed", "3", "--workers", "1"]) == 0
    build_random_bundle(folder / "work", decoder=True)
    write_words(folder / "work", Bundle.from_pretrained(folder / "work"), [CAPTIONS], ["a piano", "slow drums"])
    (folder / "work/quality").mkdir()
    (folder / "work/quality/clap.json").write_text(json.dumps(
        {"stage": "clap", "steps": 300, "train_seconds": 5400.0, "parameters": 7, "seed": 4, "n": 9, "recall": 0.25}))
    (folder / "stages").mkdir()
    (folder / "stages/base.yaml").write_text("trainer: {max_steps: 1}\n")
    (folder / "stages/clap.yaml").write_text("base: base.yaml\ntrainer: {max_steps: 600}\n")
    rows = [{"model": "teacher", "steps": 50, "fd_tagger": 1.5, "acc_instrument": 0.875, "n": 256},
            {"model": "student", "steps": 4, "fd_tagger": 777.0, "n": 256}]
    (folder / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    return folder


def arguments(world: Path, *more: str, source: str = "work", to: str = "packed") -> list[str]:
    return ["pack", "--from", str(world / source), "--to", str(world / to), "--corpus", str(world / "corpus"),
            "--stages", str(world / "stages"), *more]


@pytest.fixture(scope="module")
def packed(world) -> tuple[Path, dict]:
    data = {"root": str(world / "corpus"), "clip_samples": 20480, "windows_per_track": 2, "val_clips": 2,
            "kind": "latent", "cache_dir": str(world / "latents")}
    (world / "stages/teacher.yaml").write_text(yaml.safe_dump({"data": {"init_args": data}}))
    assert main(arguments(world, "--results", str(world / "results.json"), "--trained-on",
                          str(world / "stages/teacher.yaml"))) == 0
    return world / "packed", json.loads((world / "packed/quality.json").read_text())


@pytest.mark.parametrize(("stated", "said"), [
    ({"hash": "f" * 64, "decoders": {}}, "measured with the teacher ffffffffffff, expected {teacher}"),
    ({"decoders": {"fast": "f" * 64}}, "measured with the decoder 'fast' ffffffffffff, expected {fast}"),
    (None, "measured on a teacher that an experiment gave"),
])
def test_results_of_another_teacher_are_refused(world, packed, tmp_path, capsys, stated, said):
    """Whether the bundle was measured as the stages wrote it or as it was packed, its own results are taken."""
    work, small = Bundle.from_pretrained(world / "work"), Bundle.from_pretrained(packed[0])
    expected = {"teacher": [teacher_hash(work), teacher_hash(small)],
                "fast": [decoder_hashes(work)["fast"], decoder_hashes(small)["fast"]]}
    assert all(first != second for first, second in expected.values()), "packed in half precision"
    rows = json.loads((world / "results.json").read_text())
    path = tmp_path / "results.json"
    for bundle in (work, small):
        own = {"hash": teacher_hash(bundle), "decoders": decoder_hashes(bundle)}
        check_results_of(path, rows | {"teacher": own}, [work, small])
    path.write_text(json.dumps(rows | {"teacher": stated and own | stated}))
    assert main(arguments(world, "--results", str(path), "--n", "2", to="refused")) == 2
    shown = {name: " or ".join(found[:12] for found in both) for name, both in expected.items()}
    assert f"--results {path}: {said.format(**shown)}" in capsys.readouterr().err
    assert not (world / "refused").exists()


def test_packed_bundle_is_the_same_model(world, packed):
    folder, quality = packed
    before, after = Bundle.from_pretrained(world / "work"), Bundle.from_pretrained(folder)
    assert after.mel == before.mel and after.scheduler_config == before.scheduler_config
    assert quality["missing"] == [] and quality["precision"].keys() == {
        "unet", "vae", "text_encoder", "vocoder", "decoder", "evaluators/tagger", "evaluators/audiomae"}
    for part, get in {"vae": lambda b: b.vae, "unet": lambda b: b.unet, "vocoder": lambda b: b.vocoder}.items():
        stated = quality["precision"][part]["dtype"]
        weights = load_file(next((folder / part).glob("*.safetensors")))
        assert {str(w.dtype) for w in weights.values() if w.is_floating_point()} == {f"torch.{stated}"}
        found = get(after).state_dict()
        for key, value in get(before).state_dict().items():
            expected = value.half().float() if stated == "float16" else value
            assert torch.equal(found[key], expected), (part, key)
    words = TrainingWords.of(after)
    assert words is not None and words.folder == folder / "words"
    words.check(after.conditioner())  # of weights in half precision


def test_figures_equal_those_taken_by_hand(world, packed):
    from musiccm.audio import LogMel, fixed_window, read_audio

    folder, quality = packed
    bundle = Bundle.from_pretrained(folder)
    tagger, truth, picked = bundle.evaluators["tagger"], [], []
    columns = tagger.groups["drums"]
    for path in sorted((world / "corpus/test").iterdir()):
        label = json.loads((world / f"corpus/label/{path.stem}.json").read_text())
        tag = f"drums:{label['original_data']['attributes']['drums']}"
        waveform = read_audio(path)[0]
        window = fixed_window(waveform, 20480, (len(waveform) - 20480) // 2)[None]
        with torch.no_grad():
            choice = tagger(LogMel(bundle.mel)(window))[1][0, columns].argmax()
        if tag in tagger.tags:
            truth.append(tag)
            picked.append(tagger.tags[columns[choice]])
    assert truth
    assert quality["figures"]["tagger_accuracy"]["drums"] == pytest.approx(
        sum(a == b for a, b in zip(truth, picked, strict=True)) / len(truth))
    assert quality["figures"]["tagger_accuracy"]["n"] == 12 and quality["figures"]["fd_tagger"]["n"] == 6
    clap = quality["figures"]["clap"]
    assert clap["chance_at_10"] == pytest.approx(10 / 12) and 0 <= clap["text_to_audio_recall_at_10"] <= 1
    kept = quality["figures"]["reconstruction_accuracy"]
    assert quality["figures"]["fast_reconstruction_accuracy"]["n"] == 12
    assert quality["figures"]["fd_tagger"].keys() >= {
        f"{decoder}reconstructions_against_{what}" for decoder in ("", "fast_") for what in ("other_half",
                                                                                            "their_originals")}
    assert kept["drums_kept"] * quality["figures"]["tagger_accuracy"]["drums"] == pytest.approx(kept["drums"])


def test_the_index_holds_what_the_teacher_was_trained_on_and_nothing_of_this_machine(world, packed):
    from musiccm.audio import fixed_window, read_audio

    folder, quality = packed
    index, bundle = TrainingIndex(folder / "training_index"), Bundle.from_pretrained(folder)
    corpus = world / "corpus"
    held_out = {path.stem for path in (corpus / "validation").iterdir()}
    assert list(index.ids) == sorted(path.stem for path in (corpus / "train").iterdir()) and held_out
    assert list(index.paths)[3] == "train/train_000003.flac" and index.start_s(7) == pytest.approx(10.24 - 1.28)
    waveform = fixed_window(read_audio(corpus / index.paths[3])[0], 20480, 163840 - 20480)[None]
    row = bundle.conditioner().audio(waveform, 16000)[0]
    torch.testing.assert_close(index.read(7, 8)[0], row, atol=2**-11, rtol=0)
    stated = quality["training_index"]
    assert (stated["clips"], stated["windows"], stated["held_out_clips"]) == (10, 20, 2)
    assert stated["bundle"] == "musiccm-tiny"
    assert stated["corpora"]["audiostock"]["seed"] == 3 and stated["clap"] == bundle.content_hash(CLAP_PARTS)
    for file in (folder / "training_index").iterdir():
        assert str(world).encode() not in file.read_bytes().replace(str(corpus).encode(), b""), file
    assert "20 windows of the 10 clips" in (folder / "MODEL_CARD.md").read_text()


def test_card_states_where_everything_comes_from(packed):
    folder, _ = packed
    text = (folder / "MODEL_CARD.md").read_text()
    for stated in ("300 of 600 planned", "1.50 hours", "recall 0.25", "- seed: 3", "- train_tracks: 10", "0.875"):
        assert stated in text, stated
    assert "777" not in text, "the student's row is not the teacher's"
    assert "| recipe/clap.yaml |" in text
    assert yaml.safe_load((folder / "recipe/clap.yaml").read_text())["trainer"]["max_steps"] == 600


def test_the_packages_own_stages_are_named_and_not_copied(world, tmp_path):
    records = stage_records(world / "work", None, tmp_path / "packed")
    named = records["clap"]["recipe"]
    assert load_experiment(named)["trainer"]["max_steps"] == records["clap"]["planned_steps"] == 1400
    assert not (tmp_path / "packed").exists()


def test_every_recipe_of_the_packaged_bundle_is_there():
    tiny = resolve_bundle("musiccm-tiny")
    stages = json.loads((tiny / "quality.json").read_text())["stages"]
    assert len(stages) == 7
    for record in stages.values():
        assert load_experiment(record["recipe"])["trainer"]["max_steps"] == record["planned_steps"]
        assert f"| {record['recipe']} |" in (tiny / "MODEL_CARD.md").read_text()


def test_recall_distance_and_kept_share_of_known_features():
    generator = torch.Generator().manual_seed(0)
    eye, rows = torch.eye(40), torch.randn(40, 3, generator=generator)
    logits = torch.tensor([[1.0, 0.0]] * 40)
    tags = torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10)
    half_right = logits.clone()
    half_right[:15] = torch.tensor([0.0, 1.0])
    heard = {"ids": [str(i) for i in range(40)], "tags": tags, "real_logits": logits, "original_logits": half_right,
             "real_embedding": rows, "original_embedding": rows + torch.tensor([3.0, 0.0, 4.0]),
             "clap_text": eye, "clap_audio": eye.roll(20, 0), "fast_audio": 0.5 * eye + eye.roll(1, 0)}
    found = quality_of(heard, {"drums": [0, 1]})
    assert found["tagger_accuracy"]["drums"] == 0.75
    assert found["reconstruction_accuracy"]["drums"] == 0.375 and found["reconstruction_accuracy"]["drums_kept"] == 0.5
    assert found["fd_tagger"]["reconstructions_against_their_originals"] == pytest.approx(25.0, abs=1e-6)
    assert found["clap"]["text_to_audio_recall_at_10"] == 0.0
    assert found["text_audio"] == {"n": 40, "real": 0.0, "fast_reconstructions": pytest.approx(0.2**0.5)}
    assert quality_of({**heard, "clap_audio": eye}, {})["clap"]["text_to_audio_recall_at_10"] == 1.0


def test_half_precision_is_refused_where_it_can_be_heard():
    layer = torch.nn.Linear(4, 4)
    ones = torch.ones(2, 4)
    assert choose(layer, lambda m: [m(ones * torch.arange(4.0))], 0.01)["dtype"] == "float16"
    with torch.no_grad():
        layer.weight[0, 0] = 1e6  # beyond float16
    assert choose(layer, lambda m: [m(ones)], 0.01) == {"dtype": "float32", "relative_change": float("inf")}
    assert choose(layer, None, 0.01)["dtype"] == "float32"
    assert layer.weight.dtype == torch.float32 and half_rounded(layer).weight.dtype == torch.float32
    reference = torch.tensor([1.0, -1.0])
    assert relative_change(reference, reference * 1.1) == pytest.approx(0.1)


def test_a_bundle_without_some_parts(world, capsys):
    shutil.copytree(world / "work", world / "half", dirs_exist_ok=True)
    for part in ("vocoder", "unet"):
        shutil.rmtree(world / "half" / part, ignore_errors=True)
    index = json.loads((world / "half/model_index.json").read_text())
    (world / "half/model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k not in
                                                             ("vocoder", "unet")}))
    assert main(arguments(world, source="half", to="half-packed")) == 2
    assert "--clip-samples" in capsys.readouterr().err
    assert main(arguments(world, "--clip-samples", "20480", source="half", to="half-packed")) == 0
    assert "lacks unet, vocoder" in capsys.readouterr().out
    found = json.loads((world / "half-packed/quality.json").read_text())["figures"]
    assert "reconstruction_accuracy" not in found and "clap" in found
    assert "brings no index" in (world / "half-packed/MODEL_CARD.md").read_text()
    assert "lacks: unet, vocoder" in (world / "half-packed/MODEL_CARD.md").read_text()


def test_refusals_leave_what_was_there(world, packed, capsys, tmp_path):
    before = (packed[0] / "quality.json").read_bytes()
    assert main(arguments(world, "--max-mb", "0.01")) == 2
    message = capsys.readouterr().err
    assert "--max-mb 0.01" in message and "Traceback" not in message
    assert (packed[0] / "quality.json").read_bytes() == before
    assert not list(world.glob(".musiccm*"))
    with pytest.raises(KeyboardInterrupt), replacing_folder(packed[0]):
        assert main(arguments(world)) == 2
        assert "packed: in use by `" in capsys.readouterr().err
        raise KeyboardInterrupt
    assert (packed[0] / "quality.json").read_bytes() == before
    (world / "diary").mkdir(exist_ok=True)
    (world / "diary/monday.txt").write_text("dear diary")
    assert main(arguments(world, to="diary")) == 2 and (world / "diary/monday.txt").exists()
    assert main(arguments(world, to="work")) == 2
    assert main(arguments(world, source="diary")) == 2
    assert "model_index.json" in capsys.readouterr().err
