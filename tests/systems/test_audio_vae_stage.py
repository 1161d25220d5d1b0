"""The stage of the audio VAE: two optimizers and one clock, what it loses, measures, writes and refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_corpus import write_corpus
from tiny_melody import build_random_melody
from torch.distributions import Normal, kl_divergence

from musiccm.audio.mel import LogMel
from musiccm.audio.windows import keyed_generator
from musiccm.commands._trainer_options import check_trainer_options
from musiccm.config import load_experiment
from musiccm.data.batch import WaveformBatch
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.losses.spectral import MagnitudeDistance, MultiResolutionStft
from musiccm.models.bundle import Bundle
from musiccm.models.fast_decoder import FastDecoder
from musiccm.models.melody.audio_vae import AudioVae, AudioVaeConfig
from musiccm.systems.parallel import normal_like
from musiccm.systems.stages.audio_vae import AudioVaeStage
from musiccm.systems.stages.decoder import DecoderStage
from musiccm.systems.stages.tagger import group_accuracy

VAE = {"sample_rate_hz": 16000, "latent_channels": 4, "strides": [4, 8], "kernel_sizes": [9, 17], "channels": [4, 8],
       "depths": [1, 1], "decoder_strides": [8, 4], "decoder_kernel_sizes": [17, 9], "decoder_channels": [16, 8],
       "decoder_depths": [1, 1], "residual_kernel_sizes": [3], "residual_dilations": [[1]]}
DISCRIMINATOR = {"periods": [2], "period_widths": [4, 4], "resolutions": [[64, 16, 64]], "width": 4}


def make_stage(bundle: Path, **changes: Any) -> AudioVaeStage:
    torch.manual_seed(1)
    settings = {"vae": VAE, "crop_samples": 1024, "fft_sizes": [512, 128], "discriminator": DISCRIMINATOR,
                "warmup_steps": 1, "ema_decay": 0.5, "moments_batches": 1}
    return AudioVaeStage(bundle=str(bundle), **{**settings, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def data(corpus: Path, **changes: Any) -> MusicDataModule:
    return MusicDataModule(str(corpus), **{"clip_samples": 10240, "batch_size": 3, "val_clips": 5, **changes})


def trainer(root: Path, max_steps: int, **options: Any) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False, "val_check_interval": max_steps, **options}
    return pl.Trainer(max_steps=max_steps, accelerator="cpu", default_root_dir=root, num_sanity_val_steps=0,
                      check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False, **options)


def sounds(count: int = 3, samples: int = 2048) -> WaveformBatch:
    waveform_BS = 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(2))
    return WaveformBatch(waveform_BS, torch.zeros(count, 0), [str(n) for n in range(count)], [""] * count)


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, second[name]) for name, value in first.items())


class Weights(pl.Callback):
    """Both sides' weights before each batch, and the learning rates after it."""

    def __init__(self) -> None:
        self.vae: list[dict[str, torch.Tensor]] = []
        self.discriminator: list[dict[str, torch.Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.vae.append(copy.deepcopy(pl_module.part.state_dict()))
        self.discriminator.append(copy.deepcopy(pl_module.discriminator.state_dict()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


def test_a_run_by_two_optimizers_that_is_interrupted_ends_as_one_that_is_not(corpus: Path, tmp_path: Path) -> None:
    """Five batches are five steps; the discriminator begins with the third; what is resumed is equal to the bit."""
    options: dict[str, Any] = {"adversarial_start": 2, "lr": 1e-3, "discriminator_lr": 5e-4, "clip_norm": 1.0}
    seen, saving = Weights(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    whole = make_stage(tmp_path / "whole", **options)
    fitting = trainer(tmp_path, 5, callbacks=[seen, saving], enable_checkpointing=True)
    fitting.fit(whole, datamodule=data(corpus))
    assert fitting.global_step == len(seen.rates) == 5
    assert all(differ(a, b) for a, b in zip(seen.vae, seen.vae[1:], strict=False))
    began = [differ(a, b) for a, b in zip(seen.discriminator, seen.discriminator[1:], strict=False)]
    assert began == [False, False, True, True]
    # one curve for both: a warm-up of one step, half a cosine over the other four
    cosine = [1.0, 1.0, 0.853553, 0.5, 0.146447]
    assert [rate for rate, _ in seen.rates] == pytest.approx([1e-3 * factor for factor in cosine], rel=1e-5)
    assert [rate for _, rate in seen.rates[2:]] == pytest.approx([5e-4 * factor for factor in cosine[2:]], rel=1e-5)

    resumed = make_stage(tmp_path / "resumed", **options)
    trainer(tmp_path, 5).fit(resumed, datamodule=data(corpus), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    for name in ("whole", "resumed"):
        saved = AudioVae.from_pretrained(tmp_path / name / "audio_vae").state_dict()
        torch.testing.assert_close(saved, whole.ema.module.state_dict(), rtol=0, atol=0)
    with pytest.raises(MusiccmError, match="kl_weight"):
        other = make_stage(tmp_path / "other", **options, kl_weight=1.0)
        trainer(tmp_path, 5).fit(other, datamodule=data(corpus), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)


def test_the_loss_is_its_terms_under_their_weights(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage._trainer = None
    batch = sounds(samples=1024)  # a crop is the whole
    total, parts = stage.loss(batch, keyed_generator(0))
    expected = 50 * parts["stft"] + 20 * parts["matching"] + parts["generator"] + 5e-3 * parts["kl"]
    torch.testing.assert_close(total, expected)
    assert all(parts[name] > 0 for name in ("stft", "matching", "generator", "kl"))
    # before the discriminator
    stage.adversarial_start = 1
    total, parts = stage.loss(batch, keyed_generator(0))
    torch.testing.assert_close(total, 50 * parts["stft"] + 5e-3 * parts["kl"])
    # the KL of one draw is that of the posterior; the sound, that of the clipped draw
    mean, std = stage.part.encode(batch.waveform_BS, 16000)
    torch.testing.assert_close(parts["kl"], kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean())
    generator = keyed_generator(0)
    torch.randint(1, (3,), generator=generator)
    raw = mean + std * normal_like(mean, generator)
    sound = stage.part.decoder((raw / 3).clamp(-1, 1)[..., 0])
    torch.testing.assert_close(parts["stft"], MagnitudeDistance([512, 128])(sound, batch.waveform_BS)[0])
    # and what the paper does not have
    stage.log_stft_weight = 2.0
    more, found = stage.loss(batch, keyed_generator(0))
    torch.testing.assert_close(found["log_stft"], MultiResolutionStft([512, 128])(sound, batch.waveform_BS)[0])
    torch.testing.assert_close(more, total + 2.0 * found["log_stft"])
    assert parts["clipped_share"].item() == pytest.approx((raw.abs() > 3).double().mean().item(), abs=1e-6)


def test_crops_are_windows_of_the_clips(tmp_path: Path) -> None:
    stage, batch = make_stage(tmp_path), sounds(samples=4096)
    crops = stage.crop(batch.waveform_BS, keyed_generator(4))
    starts = [int((clip.unfold(0, 1024, 1) - crop).abs().sum(dim=1).argmin())
              for clip, crop in zip(batch.waveform_BS, crops, strict=True)]
    assert len(set(starts)) == 3
    for clip, crop, start in zip(batch.waveform_BS, crops, starts, strict=True):
        assert torch.equal(clip[start : start + 1024], crop)


def test_quality_by_distances_and_by_the_tagger(corpus: Path, tmp_path: Path) -> None:
    stage = make_stage(tmp_path, tagger_bundle="musiccm-tiny", ema_decay=None, divisor_quantile=0.9,
                       matching_weight=0.0, adversarial_weight=0.0)
    assert stage.discriminator is None
    measuring = data(corpus)
    trainer(tmp_path, 1).fit(stage, datamodule=measuring)
    quality = json.loads((tmp_path / "quality/audio_vae.json").read_text())
    batches = list(measuring.val_dataloader())
    clips = torch.cat([batch.waveform_BS for batch in batches])
    assert quality["n"] == len(clips) > 1 and len(quality["channel_std"]) == 4
    with torch.no_grad():
        mean, std = stage.part.encode(clips, 16000)
        sound = stage.part.decode((mean / 3).clamp(-1, 1))
    assert quality["stft"] == pytest.approx(MagnitudeDistance([512, 128])(sound, clips)[0].item(), rel=1e-4)
    assert quality["stft"] == pytest.approx(quality["stft_512"] + quality["stft_128"], rel=1e-5)
    assert len(batches) == 1
    raw = mean + std * normal_like(mean, stage.generator("validate", 0))
    assert quality["clipped_share"] == pytest.approx((raw.abs() > 3).double().mean().item(), abs=1e-5)
    assert quality["latent_std"] == pytest.approx(raw.std().item(), rel=1e-4)
    # the tagger's reading by the other way that there is to it, over the instruments that the corpus knows
    opened = Bundle.from_pretrained("musiccm-tiny", ["evaluators/tagger"])
    tagger = opened.evaluators["tagger"]
    tags = torch.zeros(len(clips), len(tagger.tags))
    for row, clip in enumerate(measuring.eval_clips("val")):
        for group, value in clip.attributes.items():
            tags[row, tagger.tags.index(f"{group}:{value}")] = 1.0
    read = {name: tagger(LogMel(opened.mel)(wave))[1]
            for name, wave in {"real": clips, "reconstruction": sound}.items()}
    found = {name: {group: group_accuracy(logits, tags, tagger.groups[group])[0] for group in ("instrument", "drums")}
             for name, logits in read.items()}
    for name, groups in found.items():
        assert {group: quality[f"{name}_{group}"] for group in groups} == pytest.approx(groups)
    if sum(found["real"].values()):
        kept = sum(found["reconstruction"].values()) / sum(found["real"].values())
        assert quality["tagger_kept"] == pytest.approx(kept)
    # the divisor leaves nine tenths of the latents of the training windows
    saved = AudioVae.from_pretrained(tmp_path / "audio_vae")
    assert saved.config.divisor != 3.0 and stage.part.config.divisor == 3.0
    assert (stage.raw_latents().abs() > saved.config.divisor).double().mean().item() == pytest.approx(0.1, abs=2e-3)
    # and the moments that are written give what is left of them mean 0 and deviation 1
    z_CN = saved.normalise(stage.raw_latents()[None, :, :, None])[0, :, :, 0]
    torch.testing.assert_close(z_CN.mean(1), torch.zeros(len(z_CN)), rtol=0, atol=1e-2)
    torch.testing.assert_close(z_CN.std(1), torch.ones(len(z_CN)), rtol=1e-2, atol=0)


def test_it_learns_a_tone(tmp_path: Path) -> None:
    """Forty steps of both sides on one batch."""
    t = torch.arange(1024) / 16000
    batch = sounds(2, 1024)
    batch.waveform_BS = torch.stack([0.3 * torch.sin(2 * torch.pi * f * t) for f in (500.0, 1000.0)])
    stage = make_stage(tmp_path, lr=3e-3, adversarial_start=20, ema_decay=None, clip_norm=10.0)
    stage.save = lambda: None  # type: ignore[method-assign]
    losses: list[float] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            losses.append(outputs["watched"]["stft"].item())

    loader = torch.utils.data.DataLoader([batch] * 40, batch_size=None)
    trainer(tmp_path, 40, callbacks=[Note()], limit_val_batches=0).fit(stage, loader)
    assert min(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"fft_sizes": [2048, 1024, 512]}, "fft_sizes: 2048 is longer than a crop of 1024 samples; leave it out"),
    ({"fft_sizes": [511]}, "fft_sizes: expected even"),
    ({"fft_sizes": []}, "fft_sizes: expected even"),
    ({"discriminator": {"resolutions": [[2048, 240, 1200]]}}, "discriminator.resolutions: 2048 is longer than a crop"),
    ({"crop_samples": 1000}, "crop_samples: expected a multiple of 32"),
    ({"kl_weight": -1.0}, "kl_weight"),
    ({"clip_norm": 0.0}, "clip_norm: expected a number above 0"),
    ({"discriminator_lr": float("nan")}, "discriminator_lr"),
    ({"divisor_quantile": 1.0}, "divisor_quantile: expected a share"),
    ({"initial_posterior_std": 0.0}, "initial_posterior_std"),
    ({"train_encoder": False}, "train_encoder: .* set model.init_args.start_from"),
])
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        make_stage(tmp_path, **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"sample_rate_hz": 24000}, "data.init_args.sample_rate_hz: expected sound at 16000 Hz, found 24000"),
    ({"clip_samples": 10000}, "clip_samples: expected a multiple of 32"),
    ({"clip_samples": 512}, r"at least model.init_args.crop_samples \(1024\), found 512"),
])
def test_data_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        trainer(tmp_path, 1).fit(make_stage(tmp_path), datamodule=data(corpus, **changes))


@pytest.mark.parametrize(("option", "value"), [
    ("gradient_clip_val", 1.0), ("accumulate_grad_batches", 2), ("precision", "16-mixed"),
])
def test_options_of_the_trainer_that_cannot_work_are_refused(option: str, value: Any) -> None:
    with pytest.raises(MusiccmError, match=f"trainer.{option}"):
        check_trainer_options("fit", {"max_steps": 1, option: value}, AudioVaeStage)


def test_a_divisor_that_clips_too_much_is_told(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage(tmp_path, vae={**VAE, "divisor": 0.1})
    trainer(tmp_path, 1).fit(stage, datamodule=data(corpus))
    assert "set model.init_args.divisor_quantile" in caplog.text


def test_a_decoder_goes_on_alone_and_latents_stay_what_they_are(corpus: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model_index.json").write_text("{}")
    trainer(tmp_path, 2).fit(make_stage(bundle, divisor_quantile=0.9), datamodule=data(corpus))
    before = Bundle.from_pretrained(bundle, ["audio_vae"]).part("audio_vae")
    assert before.config.divisor != 3.0 and before.config.latents_mean is not None
    stage = make_stage(bundle, start_from=str(bundle), train_encoder=False, divisor_quantile=0.99, seed=1)
    assert stage.part.config.divisor == before.config.divisor
    trainer(tmp_path, 2).fit(stage, datamodule=data(corpus, seed=1))
    after = Bundle.from_pretrained(bundle, ["audio_vae"]).part("audio_vae")
    assert after.config == before.config
    waveform_BS = sounds().waveform_BS
    assert torch.equal(after.posterior(waveform_BS).parameters, before.posterior(waveform_BS).parameters)
    latents_BCTF = torch.randn(2, 4, 8, 1)
    assert not torch.equal(after.decode(latents_BCTF), before.decode(latents_BCTF))


def test_a_fast_decoder_is_trained_on_its_latents(corpus: Path, tmp_path: Path) -> None:
    path = build_random_melody(tmp_path)
    vae = Bundle.from_pretrained(path, ["audio_vae"]).part("audio_vae")
    sizes = {**vae.raw_latents(), "hop_length": 32, "n_fft": 128, "width": 8, "hidden": 12, "latent_blocks": 1,
             "blocks": 1}
    stage = DecoderStage(sizes, bundle=str(path), warmup_steps=1, fft_sizes=(256, 512), distilled_share=0.0)
    latents_BCTF, target_BS = stage.pairs(sounds(), torch.Generator().manual_seed(5))
    posterior = vae.posterior(sounds().waveform_BS)
    noise_BCTF = normal_like(posterior.mean, torch.Generator().manual_seed(5))
    assert torch.equal(target_BS, sounds().waveform_BS)
    torch.testing.assert_close(latents_BCTF, vae.normalise(posterior.mean + posterior.std * noise_BCTF))
    trainer(tmp_path, 2).fit(stage, datamodule=data(corpus))
    quality = json.loads((path / "quality/decoder.json").read_text())
    assert 0 < quality["mel_l1"] and 0 < quality["slow_mel_l1"] and quality["mel_l1"] != quality["slow_mel_l1"]
    codec = Bundle.from_pretrained(path).codec()
    assert codec.decoded_by == "fast"
    torch.testing.assert_close(codec.decode(latents_BCTF), stage.best(latents_BCTF).clamp(-1, 1))


def test_the_small_fast_decoder_takes_the_small_vaes_latents() -> None:
    small, fast = (load_experiment(f"melody/stages/{name}")["model"]["init_args"] for name in (
        "audio_vae", "decoder"))
    with torch.device("meta"):
        FastDecoder(fast["decoder"]).check_latents(AudioVae(small["vae"]).raw_latents(), "")


def test_the_full_size_is_the_papers_and_the_small_one_its_own() -> None:
    full, small = (load_experiment(name) for name in ("melody/audio_vae", "melody/stages/audio_vae"))
    settings = full["model"]["init_args"]
    assert AudioVaeConfig(**settings["vae"]) == AudioVaeConfig()
    assert settings["fft_sizes"] == [8192, 4096, 2048, 512, 128, 64, 32]
    for content in (full, small):
        assert content["trainer"]["gradient_clip_val"] is None
        check_trainer_options("fit", content["trainer"], AudioVaeStage)
        with torch.device("meta"):
            vae = AudioVae(content["model"]["init_args"]["vae"])
        rate_hz = content["data"]["init_args"]["sample_rate_hz"]
        vae.check_rate(rate_hz)
        expected = (250, 16) if content is full else (50, 64)
        assert (rate_hz / vae.frame_samples, vae.config.latent_channels) == expected
        assert content["data"]["init_args"]["clip_samples"] % vae.frame_samples == 0
        # the weights of the losses are the class' own, the paper's
        assert not {"stft_weight", "matching_weight", "adversarial_weight", "kl_weight"} & set(
            content["model"]["init_args"])
    assert vae.latent_shape(5.12) == (64, 256, 1)
    assert sum(p.numel() for p in vae.parameters()) < 4.5e6


@pytest.mark.slow
def test_a_step_of_the_full_size(tmp_path: Path) -> None:
    settings = load_experiment("melody/audio_vae")["model"]["init_args"]
    stage = AudioVaeStage(**{**settings, "bundle": str(tmp_path), "crop_samples": 8256, "ema_decay": None})
    stage.save = lambda: None  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in stage.part.state_dict().items()}
    loader = torch.utils.data.DataLoader([sounds(1, 8256)], batch_size=None)
    fitting = trainer(tmp_path, 1, limit_val_batches=0)
    fitting.fit(stage, loader)
    assert all(torch.isfinite(fitting.callback_metrics[f"train/{name}"]) for name in (
        "loss", "stft", "matching", "generator", "discriminator", "kl"))
    still = [name for name, value in stage.part.state_dict().items() if torch.equal(value, before[name])]
    assert still == []
