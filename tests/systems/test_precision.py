"""bf16 where it is harmless, float32 where the sums are: what autocast may not touch, and what it changes."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from one_step import HalfOps, batch_of, one_step
from tiny_bundle import build_random_bundle, make_feature_extractor
from torch import nn

from musiccm.audio.mel import LogMel
from musiccm.audio.resample import resample
from musiccm.metrics import (
    FrechetDistance,
    InceptionScore,
    KLDivergence,
    TextAudioSimilarity,
)
from musiccm.models import denoiser as denoiser_module
from musiccm.models.conditioners.clap import ClapFrontEnd
from musiccm.models.denoiser import Float32Conv2d
from musiccm.models.ema import Ema
from musiccm.models.fbank_adapter import FbankAdapter
from musiccm.similarity.sim_aa import SimAA
from musiccm.systems import lcm as lcm_module
from musiccm.systems import warm_start as warm_start_module
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b"))


@pytest.mark.parametrize("features", ["audiomae", "clap"])
def test_bf16_changes_the_losses_by_less_than_a_hundredth(bundle, tmp_path, features, device):
    adversarial = Adversarial(features=features, crop_frames=4, head_width=8)
    exact, rounded = (one_step(bundle, tmp_path, precision, adversarial, size=4, device=device)
                      for precision in ("32-true", "bf16-mixed"))
    for name in ("loss", "loss_distil", "loss_g", "loss_d"):
        assert rounded.losses[name] == pytest.approx(exact.losses[name], rel=0.01), name
    assert rounded.losses["loss"] != exact.losses["loss"]  # or nothing ran in bf16
    assert all(gradient.dtype == torch.float32 for gradient in rounded.gradients.values())


def test_optimizers_averages_heads_and_r1_never_meet_16_bits(bundle, tmp_path):
    """Every operation of both optimizer steps, of the EMAs, of L_D, of R1 and of their backward passes."""
    watched: dict[str, HalfOps] = {}

    @contextmanager
    def watch(name):
        assert torch.is_autocast_enabled("cpu")
        with HalfOps() as ops:
            watched[name] = ops
            yield

    step = one_step(bundle, tmp_path, "bf16-mixed", around=watch)
    assert {name: ops.found for name, ops in watched.items()} == {"_student_step": [], "_discriminator_step": []}
    assert step.losses["r1"] > 0
    with HalfOps() as ops, torch.autocast(**BF16):
        step.model.student(torch.randn(1, 4, 8, 4), 5, None, class_labels=torch.randn(1, 32))
    assert ops.found  # the watch does see what runs in bf16


def test_boundary_conversion_and_losses_are_given_float32(bundle, tmp_path, monkeypatch):
    seen: dict[str, set[torch.dtype]] = {}

    def note(module, name):
        function = getattr(module, name)

        def noted(*args):
            with HalfOps() as ops:
                result = function(*args)
            assert not ops.found, (name, ops.found)
            tensors = [x for x in (*args, *(result if isinstance(result, tuple) else [result])) if torch.is_tensor(x)]
            seen.setdefault(name, set()).update(x.dtype for x in tensors if x.is_floating_point())
            return result

        monkeypatch.setattr(module, name, noted)

    for name in ("consistency_boundary", "to_x0"):
        note(denoiser_module, name)
    for name in ("to_eps", "training_target"):
        note(warm_start_module, name)
    note(lcm_module, "distillation_loss")
    from musiccm.diffusion import solvers

    for name in ("to_eps", "ddim_jump"):
        note(solvers, name)
    one_step(bundle, tmp_path, "bf16-mixed")
    expected = ("consistency_boundary", "to_x0", "to_eps", "ddim_jump", "distillation_loss")
    assert seen == {name: {torch.float32} for name in expected}

    model = MusicCM(bundle, adversarial=Adversarial(weight=0.0))
    batch = batch_of(model)
    with torch.autocast(**BF16):
        generator = torch.Generator().manual_seed(0)
        model.warm_start_loss(batch.latents_BCTF, batch.text_BD, generator)[0].backward()
        f = model.consistency("online")(batch.latents_BCTF, torch.tensor([999, 0]), batch.text_BD)
    assert seen["training_target"] == {torch.float32} and f.dtype == torch.float32
    assert torch.equal(f[1], batch.latents_BCTF[1])  # f(z, 0, c) = z, to the bit


def test_the_last_layer_of_every_denoiser_computes_in_float32(bundle, tmp_path):
    found = []

    def check(layer, args, output):
        exact = nn.functional.conv2d(args[0].float(), layer.weight.float(), layer.bias.float(), padding=layer.padding)
        found.append((layer.weight.dtype, output.dtype, torch.equal(exact, output)))

    forward = Float32Conv2d.forward
    with pytest.MonkeyPatch.context() as patch:

        def spied(layer, x):
            output = forward(layer, x)
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                check(layer, (x,), output)
            return output

        patch.setattr(Float32Conv2d, "forward", spied)
        one_step(bundle, tmp_path, "bf16-mixed")
    # Teacher (its bf16 copy holds this layer in float32), target and student.
    assert found == [(torch.float32, torch.float32, True)] * 3


def test_an_average_of_bf16_weights_is_summed_in_float32():
    source = nn.Linear(3, 3).bfloat16()
    ema = Ema(source, 0.999)
    with torch.no_grad():
        source.weight.add_(1.0)
    before = ema.module.weight.clone()
    with torch.autocast(**BF16):
        ema.update(source)
    expected = before + 0.001 * (source.weight.float() - before)
    torch.testing.assert_close(ema.module.weight, expected, rtol=1e-6, atol=1e-7)


def front_ends():
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(1, 16000, generator=generator)
    mel = torch.randn(1, 32, 64, generator=generator)
    adapter = FbankAdapter.to_kaldi(LogMel().config)
    return {
        "mel": (LogMel(), wave), "clap": (ClapFrontEnd(make_feature_extractor()), wave), "kaldi": (adapter, mel),
        "resample": (lambda x: resample(x, 16000, 48000), wave),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mel", "clap", "kaldi", "resample"])
def test_front_ends_are_float32_under_autocast(name):
    function, given = front_ends()[name]
    expected = function(given)
    with HalfOps() as ops, torch.autocast(**BF16):
        found = function(given)
    assert not ops.found and torch.equal(found, expected)


def figures():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(40, 6, generator=generator) for _ in range(3)]
    ids = [f"clip {i}" for i in range(40)]
    frechet, kl = FrechetDistance(), KLDivergence()
    for metric in (frechet, kl):
        metric.update(rows[0], ids, real=True)
        metric.update(rows[1], ids, real=False)
    inception, similarity, sim_aa = InceptionScore(splits=2), TextAudioSimilarity(), SimAA(rows[2], ids)
    inception.update(rows[0], ids)
    similarity.update(rows[0], rows[1], ids)
    sim_aa.update(rows[0], ids)
    retrieval = similarity.retrieval_max(rows[2])
    return [metric.compute() for metric in (frechet, kl, inception, similarity, sim_aa)] + [retrieval]


def test_metrics_are_exact_under_autocast():
    expected = figures()
    with HalfOps() as ops, torch.autocast(**BF16):
        found = figures()
    assert not ops.found
    for ours, reference in zip(found, expected, strict=True):
        numbers = {name: value for name, value in reference.items() if isinstance(value, int | float)}
        assert len(numbers) >= 2 and {name: ours[name] for name in numbers} == pytest.approx(numbers, rel=1e-12)
