"""The evaluator with a closed-form world: waveforms are latents, and listening is looking at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from musiccm.data.batch import WaveformBatch
from musiccm.embedders import Embedder, Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import CallCounter, Candidate, clip_seed, initial_noise
from musiccm.evaluation.evaluator import Evaluator
from musiccm.evaluation.suite import FeatureExtractor, MetricSuite
from musiccm.evaluation.text_audio import MeasuringClap

N, S = 24, 8
SHAPE = (2, 2, 2)
WAVES = torch.randn(N, S, generator=torch.Generator().manual_seed(0))
IDS = [f"clip{i:02d}" for i in range(N)]
TAGS = ["drums:none", "drums:rock"]


class Look(Embedder):
    """Embedding: the first samples. Logits: the next ones."""

    name, sample_rate_hz, min_duration_s, fingerprint = "tagger", 16000, S / 16000, "look"
    groups, tags = {"drums": [0, 1]}, TAGS

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        assert sample_rate_hz == 16000
        return Embeddings(waveform_BS[:, :3], [1] * len(waveform_BS), waveform_BS[:, 3:5])


class Patches(Embedder):
    """Every second sample is a row of its own; no logits."""

    name, sample_rate_hz, min_duration_s, fingerprint = "vgg", 16000, S / 16000, "patches"

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        rows = waveform_BS[:, :S].reshape(len(waveform_BS), -1, 2)
        return Embeddings(rows.flatten(0, 1), [rows.shape[1]] * len(rows))


def text(prompts: list[str]) -> Tensor:
    """A prompt names its clip; its embedding is the clip's own last samples."""
    return torch.stack([WAVES[int(prompt.split()[-1]), 5:] for prompt in prompts])


def audio(waveform: Tensor, rate: int) -> Tensor:
    assert rate == 16000
    return waveform[:, 5:]


CLAP = MeasuringClap(text, audio, torch.nn.Identity(), "bundle_clap")


def reference_batches(count: int = N) -> list[WaveformBatch]:
    drums = [TAGS[int(w[4] > w[3])].split(":")[1] for w in WAVES]
    return [
        WaveformBatch(WAVES[i : i + 7], torch.zeros(len(IDS[i : i + 7]), 0), IDS[i : i + 7],
                      [f"music {j}" for j in range(i, min(i + 7, count))],
                      [{"drums": drums[j]} for j in range(i, min(i + 7, count))])
        for i in range(0, count, 7)
    ]


def evaluator(batch_size: int = 5) -> Evaluator:
    extractor = FeatureExtractor([Look(), Patches()], audio, 16000)
    suite = MetricSuite(extractor.classifies(), ([f"t{i}" for i in range(3)], WAVES[:3, 5:]), extractor.groups)
    made = Evaluator(extractor, suite, seed=3, batch_size=batch_size, progress=False, clap=CLAP)
    made.set_reference(reference_batches())
    return made


def from_noise(shift: float, steps: int = 1) -> Candidate:
    """Makes noise into waveforms: `steps` calls of a network that adds a number."""
    network = CallCounter(lambda z, t, cond: z + shift / steps)

    def sample(cond: Tensor, noise: Tensor, seeds: Sequence[int]) -> Tensor:
        for _ in range(steps):
            noise = network(noise, torch.zeros(len(noise)), cond)
        return noise

    return Candidate("student", steps, None, text, sample, {"original": lambda z: z.flatten(1)}, SHAPE, network)


def copying() -> Candidate:
    """Gives back the very clip that the prompt names."""
    return Candidate(
        "teacher", 50, 3.0, lambda prompts: torch.tensor([[float(p.split()[-1])] for p in prompts]).expand(-1, 3),
        lambda cond, noise, seeds: WAVES[cond[:, 0].long()], {"original": lambda z: z}, SHAPE,
    )


def test_a_model_that_returns_the_real_clips_is_at_no_distance() -> None:
    run = evaluator()
    references = run.suite.references()
    outcome = run.run(copying())
    row = outcome.row
    assert row["fd_tagger"] == pytest.approx(0.0, abs=1e-9)
    assert row["kl_tagger_exact"] == pytest.approx(0.0, abs=1e-9)
    assert row["acc_drums"] == 1.0
    assert row["n"] == references["n_test_set_ta"] == N
    assert row["fd_vgg"] == pytest.approx(0.0, abs=1e-9) and row["rows_vgg"] == N * S // 2
    assert "is_vgg_mean" not in row and "kl_vgg" not in row and "rows_tagger" not in row
    cosine = torch.nn.functional.cosine_similarity(WAVES[:, None, 5:].double(), WAVES[None, :3, 5:].double(), dim=2)
    assert row["sim_aa_90"] == pytest.approx(float((cosine.amax(dim=1) > 0.9).double().mean()))
    assert references["test_set_sim_aa_90"] == row["sim_aa_90"]
    assert references["test_set_ta"] == pytest.approx(1.0)
    assert references["retrieval_max_ta"] == pytest.approx(float(cosine.amax(dim=1).mean()), rel=1e-6)
    assert {match["clip_id"]: match["nearest_id"] for match in outcome.nearest}["clip01"] == "t1"
    assert {"model": "teacher", "steps": 50, "guidance_scale": 3.0}.items() <= row.items()


def test_figures_do_not_depend_on_the_batch_or_on_who_came_before() -> None:
    whole, small = evaluator(batch_size=N), evaluator(batch_size=5)
    small.run(from_noise(9.0))
    a, b = whole.run(from_noise(0.5)).row, small.run(from_noise(0.5)).row
    for key in (k for k in a if not k.startswith("latency")):
        if isinstance(a[key], float):
            assert a[key] == pytest.approx(b[key], rel=1e-9), key
    assert (a["latency_batch"], b["latency_batch"]) == (N, 5)
    assert a["latency_s"] > 0


def test_distance_of_other_real_clips_is_that_of_their_gaussians_and_leaves_no_trace() -> None:
    run = evaluator()
    before = run.run(from_noise(0.5)).row["fd_tagger"]
    others = torch.randn(N, S, generator=torch.Generator().manual_seed(9)) + 0.25
    names = [f"other{i}" for i in range(N)]
    found = run.distance_of_real(
        WaveformBatch(others[p], torch.zeros(len(names[p]), 0), names[p], names[p])
        for p in (slice(0, 5), slice(5, 20), slice(20, N))
    )
    a, b = WAVES[:, :3].double().numpy(), others[:, :3].double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found["n"] == N and found["rows_vgg"] == N * S // 2
    assert found["fd_tagger"] == pytest.approx(expected, rel=1e-6)
    assert run.run(from_noise(0.5)).row["fd_tagger"] == before


def test_network_calls_are_counted_not_assumed() -> None:
    run = evaluator()
    assert run.run(from_noise(1.0, steps=4)).row["network_calls"] == 4
    assert run.run(copying()).row["network_calls"] is None


def test_every_model_starts_from_the_same_noise_keyed_by_clip() -> None:
    run = evaluator()
    kept = run.run(from_noise(0.0), keep=3).kept
    assert list(kept) == IDS[:3]
    expected = initial_noise([clip_seed(3, IDS[1])], SHAPE, "cpu").flatten()
    torch.testing.assert_close(kept[IDS[1]], expected)
    shifted = run.samples(from_noise(2.0), 3)
    torch.testing.assert_close(shifted[IDS[1]], expected + 2.0)
    assert clip_seed(4, IDS[1]) != clip_seed(3, IDS[1]) != clip_seed(3, IDS[2])


def test_a_clip_that_comes_twice_is_refused() -> None:
    extractor = FeatureExtractor([Look()], audio, 16000)
    run = Evaluator(extractor, MetricSuite({"tagger": True}), progress=False, clap=CLAP)
    with pytest.raises(MusiccmError, match="twice"):
        run.set_reference(reference_batches()[:1] * 2)


def test_few_clips_leave_the_inception_score_out_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    extractor = FeatureExtractor([Look()], audio, 16000)
    run = Evaluator(extractor, MetricSuite({"tagger": True}), progress=False, clap=CLAP)
    run.set_reference(reference_batches()[:2])
    row = run.run(copying()).row
    assert row["is_tagger_mean"] is None
    assert row["n"] == 14
    assert row["sim_aa_90"] is None
    assert "is_tagger left out: inception score: expected at least 2 clips in each of 10 splits" in caplog.text


def test_no_time_comes_from_tokens_that_are_remembered() -> None:
    """Tokens of the first two batches are written again for each model, and only these are timed."""
    written: list[str] = []
    remembered: dict[tuple[str, int], Tensor] = {}

    def encode(prompts: list[str], seeds: Sequence[int]) -> Tensor:
        for key, row in zip(zip(prompts, seeds, strict=True), text(prompts), strict=True):
            if key not in remembered:
                written.append(key[0])
                remembered[key] = row
        return torch.stack([remembered[key] for key in zip(prompts, seeds, strict=True)])

    def forget(prompts: Sequence[str], seeds: Sequence[int]) -> None:
        for key in zip(prompts, seeds, strict=True):
            remembered.pop(key, None)

    drawing = dataclasses.replace(from_noise(0.5), encode=encode, tokens=4, forget=forget)
    run = evaluator(batch_size=5)
    rows = [run.run(drawing).row for _ in range(2)]
    assert len(written) == N + 10 and written[N:] == written[:10]
    assert [row["latency_batches"] for row in rows] == [2, 2] and rows[0]["fd_tagger"] == rows[1]["fd_tagger"]
