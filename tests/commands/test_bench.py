"""`musiccm bench`: finding benchmarks, running them, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from musiccm.cli import main
from musiccm.commands._timing import ROW_KEYS, alternating, row
from musiccm.commands._utilisation import covered, operations, peak_of
from musiccm.commands.bench import load
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.lora import Lora
from musiccm.samplers import Crops
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation
from tests.tiny_bundle import build_random_bundle, make_unet
from tests.tiny_tokens import build_token_bundle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GOOD = '''"""Two cases."""
from musiccm.commands._timing import row

def run(bundle):
    print("bundle is", bundle)
    return [row("faster", [1.0, 2.0, 9.0], [8.0], "s", 5.0), row("alone", [0.25], [], "of 1")]
'''


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "speed.py").write_text(GOOD)
    (tmp_path / "_helper.py").write_text("raise SystemExit('must not be run')")
    return tmp_path


def test_results_follow_the_schema(folder, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "all", "--dir", str(folder), "--bundle", "a-bundle"]) == 0
    out = capsys.readouterr().out
    assert "bundle is a-bundle" in out and "speed: Two cases." in out
    assert [path.name for path in (folder / "results").iterdir()] == ["speed.json"]
    found = json.loads((folder / "results/speed.json").read_text())
    assert found["schema"] == 1 and found["machine"]["cores"] >= 1
    assert found["rows"] == [
        {"case": "faster", "ours": 2.0, "baseline": 8.0, "unit": "s", "ratio": 4.0, "target": 5.0, "n": 3},
        {"case": "alone", "ours": 0.25, "baseline": None, "unit": "of 1", "ratio": None, "target": None, "n": 1},
    ]


def test_a_benchmark_may_draw_its_rows(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    drawing = "\ndef plot(path, rows):\n    path.write_text(' '.join(row['case'] for row in rows))\n"
    (folder / "speed.py").write_text(GOOD + drawing)
    assert main(["bench", "speed", "--dir", str(folder)]) == 0
    assert (folder / "results/speed.png").read_text() == "faster alone"


def test_a_rate_is_better_when_it_is_larger():
    assert row("rate", [30.0], [10.0], "1/s", lower_is_better=False)["ratio"] == 3.0
    assert row("time", [30.0], [10.0], "s")["ratio"] == pytest.approx(1 / 3)


def test_sides_take_turns_and_warm_up():
    calls: list[str] = []
    times = alternating({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warmup=1)
    assert calls == ["a", "b"] * 3 and {name: len(t) for name, t in times.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(("code", "expected"), [
    ("", "function run"),
    ("def run(bundle):\n    return []", "list of rows"),
    ("def run(bundle):\n    return [{'case': 'x', 'ours': 1.0}]", "lacks baseline"),
])
def test_bad_benchmarks_are_named(folder, capsys, code, expected):
    (folder / "bad.py").write_text(code)
    assert main(["bench", "bad", "--dir", str(folder)]) == 2
    message = capsys.readouterr().err
    assert expected in message and "bad.py" in message
    assert not (folder / "results").exists()


def test_unknown_name_and_empty_folder(folder, capsys):
    assert main(["bench", "sped", "--dir", str(folder)]) == 2
    assert "speed" in capsys.readouterr().err
    assert main(["bench", "--dir", str(folder / "nowhere")]) == 2
    assert "--dir" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bench") / "bundle"))


def test_inference_compares_the_pipeline_with_that_of_diffusers(bundle, tmp_path, monkeypatch, capsys):
    inference = load(BENCHMARKS / "inference.py")
    for name, value in {"REPEATS": {"full size": (1, 1)}, "TEACHER_STEPS": 10, "BATCH": 2}.items():
        monkeypatch.setattr(inference, name, value)
    # A clock that goes on by one for every clip through the U-Net: real seconds of one run depend on who else computes.
    ticks, forward = [], UNet2DConditionModel.forward
    monkeypatch.setattr(UNet2DConditionModel, "forward",
                        lambda unet, sample, *args, **kwargs: ticks.extend(range(len(sample))) or forward(
                            unet, sample, *args, **kwargs))
    monkeypatch.setattr(inference, "now", lambda: float(len(ticks)))
    student = inference.write_student(bundle, tmp_path / "student", inference.small_decoder(bundle))
    rows = inference.compare("full size", bundle, str(student), "cpu", inference.Candidate)
    assert all(set(ROW_KEYS) <= set(r) for r in rows)
    found = {r["case"].removeprefix("full size: "): r for r in rows}
    speed = [r for case, r in found.items() if "text to sound" in case]
    assert [r["ratio"] for r in speed] == [5.0, 20.0] * 3, "10 guided steps are 20 passes, against 4 and 1"
    assert [r["target"] for r in speed[:2]] == [20.0, 50.0]
    for side in ("fast decoder", "original decoder", "fast decoder, bf16 (--half)"):
        parts = [found[f"of that {part}, 4 steps, {side}"] for part in inference.PARTS_OF_A_CLIP]
        assert [(r["ours"], r["baseline"]) for r in parts] == [(0.0, 0.0), (4.0, 20.0), (0.0, 0.0)]
        assert found[f"peak memory, {side}"]["ours"] > 10
    assert found["4 steps, fast decoder, a clip against a bound"]["baseline"] == 6.0
    assert found["4 steps, fast decoder, bf16 (--half), a clip against a bound"]["baseline"] == 2.0
    assert found["batch 2, 4 steps, fast decoder, seconds a clip against batch 1"]["ratio"] == 1.0


def test_one_call_is_compared_with_guided_steps(tmp_path, monkeypatch):
    """By a clock that goes on by one for every clip through the U-Net: 10 guided steps are 20, of which 4 are timed."""
    tta = load(BENCHMARKS / "tta.py")
    for name, value in {"STEPS": 10, "MEASURED": 2, "REPEATS": (2, 1)}.items():
        monkeypatch.setattr(tta, name, value)
    ticks, forward = [], UNet2DConditionModel.forward
    monkeypatch.setattr(UNet2DConditionModel, "forward",
                        lambda unet, sample, *args, **kwargs: ticks.extend(range(len(sample))) or forward(
                            unet, sample, *args, **kwargs))
    for module in (tta, tta.inference):
        monkeypatch.setattr(module, "now", lambda: float(len(ticks)))
    teacher = build_token_bundle(tmp_path / "teacher")
    student = tta.write_student(teacher, tmp_path / "student")
    assert not (student / "vae").exists() and "guidance" in json.loads((student / "musiccm.json").read_text())[
        "distillation"]
    for whole, how in ((False, "2 timed x 5"), (True, "all timed")):
        monkeypatch.setattr(tta, "WHOLE", whole)
        ticks.clear()
        rows = tta.compare(teacher, student, "cpu")
        assert all(set(ROW_KEYS) <= set(r) for r in rows)
        assert [(r["case"], r["ours"], r["baseline"], r["ratio"], r["n"]) for r in rows[:2]] == [
            (f"one call, {name} decoder, text to sound, against 10 guided steps ({how})", 1.0, 20.0, 20.0, 2)
            for name in ("fast", "original")]
        assert [(r["ours"], r["baseline"]) for r in rows[2:]] == [(0.0, 0.0), (1.0, 20.0), (0.0, 0.0)] * 2
        # a warm-up of each; then what is timed
        assert len(ticks) == 2 + 2 + 2 * 2 + (20 if whole else 4)
    made = []
    half = tta.Guided(teacher, "cpu", torch.float16)
    monkeypatch.setattr(half, "decode", lambda z, decode=half.decode: made.append(decode(z)))
    half.ask(1)
    assert made[0].dtype == torch.float16, "as on a GPU"


def test_a_long_baseline_is_timed_whole_where_it_is_asked_for(folder, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "speed", "--whole", "--dir", str(folder)]) == 2
    assert "speed.py times everything whole" in capsys.readouterr().err
    (folder / "long.py").write_text(GOOD + (
        "\nWHOLE = False\n_run = run\ndef run(bundle):\n    print('whole:', WHOLE)\n    return _run(bundle)\n"))
    for more, said in (([], "whole: False"), (["--whole"], "whole: True")):
        assert main(["bench", *more, "--dir", str(folder)]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.slow
def test_a_candidate_apart_answers_as_one_here_or_says_that_it_ended(bundle):
    inference = load(BENCHMARKS / "inference.py")
    apart = inference.Apart(bundle, "cpu", None)
    answer = apart.ask(steps=1)
    assert answer.keys() == {"total", "peak", *inference.PARTS_OF_A_CLIP}
    assert answer["total"] == pytest.approx(sum(answer[part] for part in inference.PARTS_OF_A_CLIP))
    with pytest.raises(RuntimeError, match="ended with 1"):
        apart.ask(steps="many")
    apart.close()


def test_training_runs_on_any_bundle(bundle, monkeypatch, device):
    training = load(BENCHMARKS / "training.py")
    monkeypatch.setattr(training, "choose_device", lambda _: device)
    for name, value in {"BATCH": 2, "STEPS": 1, "ROUNDS": 1, "DRAWN": (2, 3)}.items():
        monkeypatch.setattr(training, name, value)
    trained = training.run(bundle)
    assert all(set(ROW_KEYS) <= set(r) for r in trained)
    assert sum(r["ours"] for r in trained if r["case"].startswith("share")) == pytest.approx(1.0)
    assert len(trained) == 21 and all(r["ours"] > 0 for r in trained)
    found = {r["case"].split(", peak")[0].split(", against the peak")[0]: r["ours"] for r in trained}
    if device == "cpu":
        work = {r["case"]: r for r in trained}["adversarial, on a crop, against distillation alone, counted"]
        for name, clip in (("distillation alone", work["baseline"]), ("adversarial, on a crop", work["ours"])):
            steps, clips, done = (found[f"{name}, batch 2: {what}"] for what in ("steps", "clips", "operations"))
            assert clips == pytest.approx(2 * steps) and done == pytest.approx(clips * clip / 1e3)


def test_the_operations_of_a_real_step_are_those_of_its_passes(bundle):
    """Of distillation: a guided pair, the target, and the student's pass with a backward pass of twice the work."""
    training = load(BENCHMARKS / "training.py")
    system = training.made(MusicCM, bundle, Adversarial(weight=0.0))
    unet = make_unet()
    once = operations(lambda: unet(torch.zeros(1, 4, 8, 4), 5, None, class_labels=torch.zeros(1, 32)))
    assert training.clip_operations(system) == pytest.approx(6 * once, rel=0.02)


def test_rates_are_held_against_the_cards_peak(monkeypatch):
    training = load(BENCHMARKS / "training.py")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for card, peak in (("NVIDIA H100 80GB HBM3", 989.4), ("A card of one's own", None)):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda card=card: card)
        steps, clips, done = training.rate_rows("x", 8, [0.5, 0.25, 0.125], 10**12, 0.35)
        assert (steps["ours"], clips["ours"], done["ours"]) == (4.0, 32.0, 32.0) and done["unit"] == "TFLOPS"
        assert done["baseline"] == peak and done["target"] == (None if peak is None else 0.35)
        assert done["ratio"] == (None if peak is None else pytest.approx(32 / peak))
        said = "peak of A card of one's own unknown" if peak is None else f"against the peak of {card}"
        assert done["case"] == f"x, batch 8: operations, {said}"


def test_rates_on_a_gpu_are_of_two_batches_and_the_released_size(bundle, monkeypatch):
    training = load(BENCHMARKS / "training.py")
    for name, value in {"GPU_BATCHES": (2, 3), "FULL_BATCH": 2, "GPU_STEPS": (1, 1), "BACKEND": None, "FULL_CROP": 4,
                        "RATES": {3: 1.0}, "full_size": lambda folder, bundle: bundle}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = training.gpu_rows(bundle, "cpu")
    assert len(rows) == 2 * 3 + 2 * 3 + 1 and all(r["ours"] > 0 and set(ROW_KEYS) <= set(r) for r in rows)
    assert [r["baseline"] for r in rows if "against a goal" in r["case"]] == [1.0]
    assert rows[-1]["target"] == 1 / 1.8 and rows[-1]["ratio"] == pytest.approx(rows[-1]["baseline"] / rows[-1]["ours"])


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989.4e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA L40", None),
    ("NVIDIA A10G", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA GeForce RTX 4090", 165.2e12),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Radeon", None)])
def test_a_card_is_known_by_its_whole_name(name, peak):
    assert peak_of(name) == peak


def test_kernels_side_by_side_count_once():
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (3.0, 4.0)]) == 5.0 and covered([]) == 0.0


def test_hours_follow_from_the_utilisation(tmp_path, monkeypatch):
    """At 100 % of 1 TFLOPS a run of 3.6 x 10^15 operations takes an hour; what was measured is said to be."""
    hours = load(BENCHMARKS / "training_hours.py")
    monkeypatch.setattr(hours, "RUNS", {"a run": 3.6e15})
    monkeypatch.setattr(hours, "CARDS", {"NVIDIA X": 1e12})
    monkeypatch.setattr(hours, "ASSUMED", (0.5,))
    monkeypatch.setattr(hours, "RESULTS", tmp_path)
    rows = hours.run("unused")
    assert [(r["case"], r["ours"]) for r in rows] == [
        ("a run on 1 NVIDIA X, assumed 50 % of its peak", 2.0), ("a run on 8 NVIDIA X, assumed 50 % of its peak", 0.25)]
    measured = {"case": f"{hours.MEASURED}, against the peak of NVIDIA X", "ours": 0.25, "baseline": 1.0, "ratio": 0.25}
    results = {"machine": {"gpu": "NVIDIA X"}, "rows": [{"case": "else", "ratio": 0.1}, measured]}
    (tmp_path / "training-nvidia-x.json").write_text(json.dumps(results))
    (tmp_path / "training.json").write_text(json.dumps({"machine": {"gpu": None}, "rows": []}))
    assert [(r["case"], r["ours"]) for r in hours.run("unused")] == [
        ("a run on 1 NVIDIA X, measured 25 % of its peak", 4.0),
        ("a run on 8 NVIDIA X, measured 25 % of its peak", 0.5)]


def test_the_hours_are_read_from_the_rows_that_training_writes(bundle, monkeypatch):
    training, hours = load(BENCHMARKS / "training.py"), load(BENCHMARKS / "training_hours.py")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    name = training.FULL_SIZE.format("adversarial, on a crop")
    found = training.rate_rows(name, training.FULL_BATCH, [0.1], 10**12)[-1]["case"]
    assert found == f"{hours.MEASURED}, against the peak of NVIDIA H200"


def test_corpus_benchmark_counts_tracks(monkeypatch):
    corpus = load(BENCHMARKS / "corpus.py")
    monkeypatch.setattr(corpus, "TRACKS", 3)
    monkeypatch.setattr(corpus, "ROUNDS", 1)
    clock, spent = iter([0.0, 1.0, 10.0, 12.0]), iter([0.0, 1.0, 5.0, 5.32])
    monkeypatch.setattr(corpus.time, "perf_counter", lambda: next(clock, 99.0))
    monkeypatch.setattr(corpus, "_spent_s", lambda: next(spent))
    monkeypatch.setattr(corpus, "write_corpus", lambda folder, tracks, seed, test_tracks, validation_tracks: None)
    rate, cost = corpus.run("unused")
    assert rate["ours"] == 2.0 and rate["ratio"] == pytest.approx(20.48) and rate["unit"] == "tracks/s"
    # 100 tracks/s on 16 cores are 0.16 s of one core a track
    assert cost["ours"] == pytest.approx(0.08) and cost["ratio"] == pytest.approx(2.0) and cost["target"] == 1.0


@pytest.mark.slow
def test_full_size_benchmark_counts_the_work_and_the_memory_of_a_step(tmp_path, monkeypatch):
    """On small parts, against the step's closed form: six passes of the U-Net, and what the discriminator adds."""
    full = load(BENCHMARKS / "full_size.py")
    for name, value in {"CROP": 4, "BATCH": 2}.items():
        monkeypatch.setattr(full, name, value)
    system = MusicCM(str(build_random_bundle(tmp_path / "bundle")), adversarial=Adversarial(head_width=8))
    system._progress = lambda: 0.0
    batch = full.training.batches(system, 1)[0]

    unet = system.teacher.unet
    once = full.giga_operations(lambda: unet(torch.zeros(1, 4, 8, 4), 5, None, class_labels=torch.zeros(1, 32)))
    alone, crop, straightforward = (
        full.giga_operations(lambda step=step: step(batch))
        for step in (full.step_of(system, False), full.step_of(system, True), full.step_of(system, True, True))
    )
    # A guided pair, the target, and the student's pass with a backward pass of twice the work.
    assert alone == pytest.approx(6 * once, rel=0.02)
    # Decoder and features see twice as much, and go through it 5 times (real, its embedding, the student's side, that
    # again and back) where ours goes 3 times; the heads, which are most of so small a discriminator, are called alike.
    assert 1.0 < (straightforward - alone) / (crop - alone) / 2 < 5 / 3

    mode = full.FakeTensorMode(allow_non_fake_inputs=True)
    full.make_fake([system], mode, "cpu")
    rows = full.memory_rows(system, batch, mode)
    assert all(set(ROW_KEYS) <= set(r) for r in rows)
    crop, whole, recomputing = (r["ours"] for r in rows[1::2])
    assert recomputing < 0.7 * crop < 0.7 * whole


@pytest.mark.slow
def test_the_matching_benchmark_counts_turns_and_memory(tmp_path):
    """On small parts, against closed forms of the turns' passes."""
    module = load(BENCHMARKS / "full_size_matching.py")
    module.BATCH = 2
    bundle = str(build_random_bundle(tmp_path / "bundle"))
    whole, small = ({r["case"].split(",")[0] if "turn" in r["case"] else r["case"]: r["ours"] for r in module.counted(
        DMD2(bundle, Distillation(weight=1.0), Matching(critic_lora=lora)), "x")} for lora in (None, Lora(2, 2.0)))
    assert module.mean_calls((1, 2, 4, 8)) == 2.375
    call = whole["a network call, one clip"]
    unet = make_unet()
    once = module.full_size.giga_operations(
        lambda: unet(torch.zeros(1, 4, 8, 4), 5, None, class_labels=torch.zeros(1, 32)))
    assert call == pytest.approx(once, rel=1e-6)
    # 1.375 calls without gradients; the last with (3); the guided pair (2); the critic (1), and back through half of it
    assert 7.375 * once < whole["student's turn"] < 8.375 * once
    # 2.375 calls; the critic (3); the half of it down to the middle, forth and back (1 to 2)
    assert 6.375 * once < whole["critic's turn"] < 7.375 * once
    name = "memory of a step, x, batch 2, bf16{}, against a 40 GB card"
    assert small[name.format("")] < whole[name.format("")]
    again = "of a step activations, x, batch 2, bf16, recomputing activations"
    assert whole[again] < 0.5 * whole["of a step activations, x, batch 2, bf16"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of random weights, with both decoders."""
    folder = tmp_path_factory.mktemp("bundles")
    teacher = Bundle.from_pretrained(build_random_bundle(folder / "teacher", decoder=True))
    torch.manual_seed(11)
    info = StudentInfo("v_prediction", 3.0, sampler={"name": "lcm", "gamma": 0.6})
    return str(export_student(make_unet(), teacher, folder / "student", info, base="../teacher"))


def test_fine_structure_is_told_apart_where_windows_overlap():
    """Frames that alternate have a first difference of ±2 wherever they do; frames that stand still have none."""
    crops = Crops(10, 6, 4)  # frames 4 and 5 lie in both windows
    z = torch.zeros(1, 10, 2)
    z[:, 4], z[:, 5] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    shared, alone = load(BENCHMARKS / "long.py").detail(z, crops)
    assert shared == [pytest.approx(torch.tensor([2.0, -2.0]).var().item())]
    step = torch.zeros(8, 2)  # the other differences: into frame 4, out of frame 5
    step[3], step[4] = torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])
    assert alone == [pytest.approx(step.var().item())]
    assert load(BENCHMARKS / "long.py").detail(z, Crops(10, 5, 5))[0] == [], "windows end to end share nothing"


def test_streaming_benchmark_shows_both_decoders(student, tmp_path, monkeypatch, device):
    streaming = load(BENCHMARKS / "streaming.py")
    monkeypatch.setattr(streaming, "choose_device", lambda _: device)
    for name, value in {"LENGTHS_S": (4.8, 5.0), "WHOLE_S": 4.8, "SAME_S": 1.5, "apart": streaming.play}.items():
        monkeypatch.setattr(streaming, name, value)
    rows = streaming.run(student)
    figure = {r["case"]: r["ours"] for r in rows}
    # Half a window is done after 2 (T - 1) + 1 = 7 calls, which the fast decoder's reach leaves a frame of; the VAE
    # wants a whole window.
    calls = [figure[f"{name} decoder: network calls until the first sound"] for name in ("original", "fast")]
    assert calls == [8, 7]
    assert all(value < 1e-4 for case, value in figure.items() if "largest difference" in case)
    assert [(r["decoder"], r["length_s"]) for r in rows if r.get("shown") == "growth"] == [
        ("original", 4.8), ("original", 5.0), ("fast", 4.8), ("fast", 5.0)]
    streaming.plot(tmp_path / "streaming.png", rows)
    with Image.open(tmp_path / "streaming.png") as image:
        assert image.format == "PNG" and len(image.convert("L").getcolors()) > 2


@pytest.mark.slow
def test_long_music_benchmarks_run_on_a_bundle_with_a_fast_decoder(student, monkeypatch, device):
    """They need mels, which a fast decoder does not make, and they show both decoders where sound is made."""
    gamma, long, edits = (load(BENCHMARKS / f"{name}.py") for name in ("gamma", "long", "edits"))
    for module, small in (
        (long, {"REAL": 4, "SHORT": (2, 3.84), "LONG": (1, 1.28), "DECODED": (1, 2.56),
                "OVERLAPS": {"uniform": (0.5,)}}),
        (gamma, {"CLIPS": 4, "DRAWS": 1, "GAMMAS": {1: (1.0,), 2: (1.0, 0.0)}}),
        (edits, {"CLIPS": 1}),
    ):
        for name, value in {**small, "choose_device": lambda _: device}.items():
            monkeypatch.setattr(module, name, value)
    rows = long.run(student)
    figure = {r["case"]: r for r in rows}
    assert "fd_tagger around seams: uniform, overlap 0.5" in figure
    assert figure["this variance in overlaps, of the uniform mean's: MultiDiffusion, overlap 0.5"]["n"] == 2
    for name in ("original", "fast"):
        assert figure[f"{name} decoder: largest difference of sound in chunks and at once"]["ours"] < 1e-5
    assert figure["largest difference of uniform and eps-fusion"]["ours"] < 1e-4

    rows = gamma.run(student)
    assert [r["ours"] == r["baseline"] for r in rows] == [True, True, False], "gamma 1 is its own baseline"

    rows = edits.run(student)
    figure = {r["case"]: r["ours"] for r in rows}
    assert figure["student, continued: drums go on, share of 1, against the track itself"] in (0, 1)
    assert figure["student, continued: level jump over 1 s, against a hard join"] > 0
    assert figure["student, mended: spectral change over 0.1 s, against a hard join"] > 0
    assert not any("mended" in case and "over 1 s" in case for case in figure), "what is made anew is shorter"


def test_processor_time_of_commands(tmp_path, monkeypatch):
    start_up = load(BENCHMARKS / "start_up.py")
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint('so much', end='')\nraise SystemExit(3)"
    assert 0.3 <= start_up.processor_s(["-c", busy], tmp_path, 3)
    with pytest.raises(MusiccmError, match="expected exit code 0, found 3: so much"):
        start_up.processor_s(["-c", busy], tmp_path)

    calls = []

    def fake(arguments, folder, code=0):
        calls.append(arguments)
        first = len({tuple(call) for call in calls}) == len(calls)
        return 100.0 if first else (1.0 if arguments == start_up.TORCH else 4.0)

    monkeypatch.setattr(start_up, "processor_s", fake)
    rows = start_up.run("musiccm-tiny")
    assert {r["ours"] for r in rows} == {4.0} and {r["ratio"] for r in rows} == {0.25}, "the first turn is not counted"
    assert any("musiccm-tiny-student" in call for call in calls)
