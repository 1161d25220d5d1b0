"""Every stage trains two steps on a small corpus and leaves a part that the bundle can read."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel
from pytorch_lightning.callbacks import ModelCheckpoint
from small_corpus import write_corpus
from tiny_bundle import build_random_bundle, make_clap, make_unet, make_vae, make_vocoder
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.evaluation.text_audio import measuring_clap
from musiccm.models.bundle import Bundle
from musiccm.models.codec import LatentCodec
from musiccm.models.fast_decoder import FastDecoder
from musiccm.systems.stages.audiomae import AudioMaeStage
from musiccm.systems.stages.base import Stage, earlier_runs, warmup_cosine
from musiccm.systems.stages.clap import ClapStage
from musiccm.systems.stages.decoder import DecoderStage
from musiccm.systems.stages.tagger import TaggerStage, group_accuracy
from musiccm.systems.stages.teacher import TeacherStage, scale_condition, start_unet_at_identity
from musiccm.systems.stages.vae import VaeStage, start_at_scale, start_posterior_at
from musiccm.systems.stages.vocoder import VocoderStage

CLIP_SAMPLES = 20480  # 128 mel frames
SMALL_TAGGER = {"stem_widths": [4, 4, 8], "width": 16, "dilations": [1, 2], "embedding_width": 16}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle"), evaluators=False)


def data(corpus: Path) -> MusicDataModule:
    return MusicDataModule(str(corpus), clip_samples=CLIP_SAMPLES, batch_size=6, val_clips=2)


def trainer(root: Path, max_steps: int = 2, **more: Any) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False} | more
    return pl.Trainer(
        max_steps=max_steps, accelerator="cpu", default_root_dir=root, val_check_interval=2, num_sanity_val_steps=0,
        check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        **options,
    )


def plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


def run(stage: Stage, datamodule: pl.LightningDataModule, root: Path) -> dict[str, Any]:
    """Fit, and check what holds for all stages: weights moved, quality written. Gives the quality."""
    fitting = trainer(root)
    fitting.fit(stage, datamodule=datamodule)
    quality = json.loads((stage.bundle / "quality" / f"{stage.stage}.json").read_text())
    assert quality["stage"] == stage.stage and quality["steps"] == 2 and quality["n"] > 0
    assert quality["train_seconds"] > 0
    return quality


def test_tagger(corpus: Path, tmp_path: Path):
    stage = TaggerStage(SMALL_TAGGER, bundle=str(tmp_path), warmup_steps=1, ema_decay=0.5)
    quality = run(stage, data(corpus), tmp_path)
    assert {"accuracy_instrument", "accuracy_drums"} <= set(quality)
    tagger = Bundle(tmp_path, {}, {}, torch.float32).evaluators["tagger"]
    assert tagger.tags == ["drums:none", "drums:rock", "instrument:flute", "instrument:organ", "instrument:piano"]
    torch.testing.assert_close(tagger.state_dict(), stage.ema.module.state_dict())


def test_group_accuracy_ignores_clips_without_the_group():
    logits = torch.tensor([[3.0, 0.0, 9.0], [0.0, 2.0, 9.0], [5.0, 0.0, 9.0], [0.0, 1.0, 9.0]])
    tags = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert group_accuracy(logits, tags, [0, 1]) == (pytest.approx(2 / 3), 3)


def clap_stage(root: Path, **more: Any) -> ClapStage:
    config = make_clap(300).config
    extractor = {"sampling_rate": 16000, "hop_length": 160, "max_length_s": 1, "fft_window_size": 512,
                 "frequency_max": 8000, "truncation": "rand_trunc"}
    return ClapStage(
        plain(config.text_config.to_dict()), plain(config.audio_config.to_dict()), extractor, projection_dim=32,
        bundle=str(root), warmup_steps=1, **more,
    )


def test_clap(corpus: Path, tmp_path: Path):
    stage = clap_stage(tmp_path)
    quality = run(stage, data(corpus), tmp_path)
    assert quality["text_to_audio_recall_at_10"] == 1.0  # two pairs only
    conditioner = Bundle.from_pretrained(tmp_path).conditioner()
    waveform = torch.randn(2, CLIP_SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded = conditioner.audio(waveform, 16000)
        expected = stage.part.eval().get_audio_features(input_features=stage.front_end(waveform)).pooler_output
    torch.testing.assert_close(embedded, expected)
    assert conditioner.null(1).norm() == pytest.approx(1.0, abs=1e-5)


def test_clap_learns_tags_through_a_map_that_is_dropped(corpus: Path, tmp_path: Path):
    stage = clap_stage(tmp_path, tag_weight=1.0)
    run(stage, data(corpus), tmp_path)
    assert stage.tag_head.out_features == 5
    assert all(key.split(".")[0] in ("audio_model", "audio_projection", "text_model", "text_projection")
               or key.startswith("logit_scale") for key in Bundle.from_pretrained(tmp_path).clap.state_dict())
    # an embedding that points along one row of the map says that row's tag
    with torch.no_grad():
        stage.tag_head.weight.copy_(100 * torch.eye(5, 32))
        stage.tag_head.bias.fill_(-50.0)
    says = torch.eye(5, 32)
    assert stage.tag_loss(says, torch.eye(5)) < 1e-6
    assert stage.tag_loss(says, torch.eye(5).roll(1, 0)) > 10


def test_quality_is_written_with_the_part_that_it_tells_of(corpus: Path, tmp_path: Path):
    """An interrupted run, whose part is not written, leaves no figures; a part that goes on counts itself once."""
    kept, written = tmp_path / "quality/clap.json", []

    class Look(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            written.append(kept.is_file() and json.loads(kept.read_text())["steps"])

    trainer(tmp_path, 4, callbacks=[Look()]).fit(clap_stage(tmp_path), datamodule=data(corpus))
    assert written == [False, False]
    first = json.loads(kept.read_text())
    assert first["steps"] == 4
    again = clap_stage(tmp_path, start_from=str(tmp_path))
    trainer(tmp_path, 6, callbacks=[Look()]).fit(again, datamodule=data(corpus))
    assert written[2:] == [4, 4, 4]
    assert json.loads(kept.read_text())["before"]["steps"] == 4


def test_a_stage_that_is_at_its_end_leaves_its_figures(corpus: Path, tmp_path: Path):
    """Its checkpoint is of before the last validation."""
    kept = tmp_path / "quality/clap.json"
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    saving = trainer(tmp_path, 4, callbacks=[saver], enable_checkpointing=True)
    saving.fit(clap_stage(tmp_path), datamodule=data(corpus))
    first = json.loads(kept.read_text())
    assert first["steps"] == 4
    checkpoint = tmp_path / "step=4.ckpt"
    assert torch.load(checkpoint, weights_only=True)["stage_quality"]["record"]["steps"] == 2
    for found in (first, None):
        if found is None:
            kept.unlink()
        trainer(tmp_path, 4).fit(clap_stage(tmp_path), datamodule=data(corpus), ckpt_path=checkpoint)
        assert json.loads(kept.read_text())["steps"] == (4 if found else 2)


def test_a_stage_can_start_from_a_bundles_part(corpus: Path, tmp_path: Path):
    first = clap_stage(tmp_path / "first")
    run(first, data(corpus), tmp_path)
    second = clap_stage(tmp_path / "second", start_from=str(tmp_path / "first"))
    for name, value in first.part.state_dict().items():
        torch.testing.assert_close(second.part.state_dict()[name], value)
    quality = run(second, data(corpus), tmp_path)
    assert quality["before"]["steps"] == 2 and quality["before"]["train_seconds"] > 0
    (tmp_path / "first/quality").rename(tmp_path / "elsewhere")  # as a packed bundle has them
    record = json.loads((tmp_path / "elsewhere/clap.json").read_text())
    (tmp_path / "first/quality.json").write_text(json.dumps({"stages": {"clap": {**record, "before": {"steps": 5}}}}))
    assert earlier_runs(str(tmp_path / "first"), "clap") == {"steps": 7, "train_seconds": record["train_seconds"]}
    assert earlier_runs(str(tmp_path / "first"), "vae") == {}
    tokenizers = [Bundle.from_pretrained(tmp_path / name).tokenizer for name in ("first", "second")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    with pytest.raises(MusiccmError, match="another shape"):
        VocoderStage(
            plain(make_vocoder().config.to_dict()) | {"upsample_initial_channel": 64},
            start_from=str(build_random_bundle(tmp_path / "other", evaluators=False)),
        )


def test_a_second_clap_is_written_whole_into_one_folder_beside_the_first(corpus: Path, tmp_path: Path):
    stage = clap_stage(tmp_path, second=True, seed=1)
    run(stage, data(corpus), tmp_path)
    bundle = Bundle(tmp_path, {}, {}, torch.float32)
    assert not (tmp_path / "text_encoder").exists() and not (tmp_path / "tokenizer").exists()
    second = bundle.second_clap()
    waveform = torch.randn(2, CLIP_SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stage.part.eval().get_audio_features(input_features=stage.front_end(waveform)).pooler_output
        torch.testing.assert_close(second.audio(waveform, 16000), expected)
    # as the evaluation asks for it: by its name in a bundle, or by its folder
    for named in ("clap_second", str(tmp_path / "evaluators/clap_second")):
        measuring = measuring_clap(bundle, named)
        assert measuring is not None and measuring.name == named and not measuring.of_bundle
        torch.testing.assert_close(measuring.text(["slow organ"]), second.text(["slow organ"]))


def test_clap_asks_for_tags_when_it_is_to_learn_them(corpus: Path, tmp_path: Path):
    untagged = tmp_path / "untagged"
    shutil.copytree(corpus, untagged)
    for path in (untagged / "label").iterdir():
        path.write_text(json.dumps({"text": json.loads(path.read_text())["text"], "tag": [], "original_data": {}}))
    with pytest.raises(MusiccmError, match="tag_weight: 0"):
        trainer(tmp_path).fit(clap_stage(tmp_path, tag_weight=1.0), datamodule=data(untagged))


def test_vae_stores_the_moments_of_its_latents(corpus: Path, tmp_path: Path):
    stage = VaeStage(
        plain(make_vae().config), bundle=str(tmp_path), warmup_steps=1, crop_frames=64, moments_batches=2,
        ema_decay=0.9, latent_patch=2,
    )
    run(stage, data(corpus), tmp_path)
    trained = Bundle.from_pretrained(tmp_path)
    assert trained.latent_patch == 2
    codec = LatentCodec(trained.vae, None, trained.mel)
    fresh = data(corpus)
    fresh.setup("fit")
    loader = iter(fresh.train_dataloader())
    waveforms = torch.cat([next(loader).waveform_BS for _ in range(2)])
    with torch.no_grad():
        mean, std = codec.encode(stage.mel(waveforms))
        draws = [torch.randn(mean.shape, generator=torch.Generator().manual_seed(n)) for n in range(20)]
        z = torch.cat([codec.normalise(mean + std * draw) for draw in draws])
    torch.testing.assert_close(codec.normalise(mean).mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)


def test_vae_starts_at_the_scale_of_its_data_with_narrow_posteriors():
    original = make_vae()
    scaled = copy.deepcopy(original)
    start_at_scale(scaled, mean=-5.0, std=3.0)
    image = torch.randn(2, 4, 16, 16) * 3.0 - 5.0
    inner = (..., slice(1, -1), slice(1, -1))  # zero padding is no mean at the border
    with torch.no_grad():
        torch.testing.assert_close(
            scaled.encoder.conv_in(image)[inner], original.encoder.conv_in((image + 5.0) / 3.0)[inner],
            atol=1e-5, rtol=1e-5,
        )
        hidden = torch.randn(2, original.decoder.conv_out.in_channels, 8, 8)
        torch.testing.assert_close(scaled.decoder.conv_out(hidden), original.decoder.conv_out(hidden) * 3.0 - 5.0)
        start_posterior_at(scaled, 0.05)
        std = scaled.encode(image).latent_dist.std
    torch.testing.assert_close(std, torch.full_like(std, 0.05))


def test_vocoder_also_on_reconstructed_mels(corpus: Path, bundle: Path, tmp_path: Path):
    stage = VocoderStage(
        plain(make_vocoder().config.to_dict()), bundle=str(bundle), warmup_steps=1, segment_frames=24,
        fft_sizes=(256, 512), reconstructed_share=0.5,
    )
    before = copy.deepcopy(stage.part.state_dict())
    quality = run(stage, data(corpus), tmp_path)
    assert {"mel_l1", "reconstructed_mel_l1", "latency_s"} <= set(quality) and quality["gflop_a_clip"] > 0
    saved = Bundle.from_pretrained(bundle).vocoder.state_dict()
    assert not torch.equal(saved["conv_post.weight"], before["conv_post.weight"])
    torch.testing.assert_close(saved, stage.part.state_dict())
    assert not any("codec" in key or "vae" in key for key in stage.state_dict())


def test_vocoder_segments_are_cut_from_the_clips_own_mel(corpus: Path, tmp_path: Path):
    stage = VocoderStage(plain(make_vocoder().config.to_dict()), bundle=str(tmp_path), segment_frames=24)
    datamodule = data(corpus)
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    mel, wave = stage.segments(batch, torch.Generator().manual_seed(3))
    assert mel.shape == (6, 24, 64) and wave.shape == (6, 24 * 160)
    for item in range(6):
        clip = batch.waveform_BS[item]
        start = int((clip.unfold(0, wave.shape[1], 160) - wave[item]).abs().sum(1).argmin())
        assert torch.equal(clip[start * 160 :][: wave.shape[1]], wave[item])
        # the log of nearly empty bins magnifies rounding
        torch.testing.assert_close(mel[item], stage.mel(clip[None])[0, start : start + 24], atol=2e-2, rtol=0)


def test_vocoder_refuses_a_mel_of_other_dimensions():
    config = plain(make_vocoder().config.to_dict()) | {"upsample_rates": [5, 4, 2, 2, 1]}
    with pytest.raises(MusiccmError, match="product of upsample_rates is 80.*160"):
        VocoderStage(config)


def decoder_config(bundle: Path, **changed: int) -> dict[str, int]:
    codec = Bundle.from_pretrained(bundle, ["vae"]).codec("none")
    factor = codec.downsampling // codec.latent_patch
    fitting = {"latent_channels": codec.vae.config.latent_channels, "latent_bins": codec.mel.n_mels // factor,
               "latent_hop": codec.mel.hop_length * factor, "hop_length": codec.mel.hop_length, "n_fft": 640,
               "width": 16, "hidden": 24, "latent_blocks": 1, "blocks": 1}
    return fitting | changed


def test_decoder_from_clips_and_from_the_slow_pair(corpus: Path, bundle: Path, tmp_path: Path):
    stage = DecoderStage(
        decoder_config(bundle), bundle=str(bundle), warmup_steps=1, fft_sizes=(256, 512), adversarial_weight=0.1,
        discriminator={"fft_sizes": (256,), "width": 4}, distilled_share=0.5,
    )
    judge = copy.deepcopy(stage.discriminator.state_dict())
    quality = run(stage, data(corpus), tmp_path)
    assert {"mel_l1", "slow_mel_l1"} <= set(quality) and 0 < quality["gflop_a_second"]
    saved = FastDecoder.from_pretrained(bundle / "decoder").state_dict()
    torch.testing.assert_close(saved, stage.part.state_dict())
    assert any(not torch.equal(judge[name], value) for name, value in stage.discriminator.state_dict().items())
    assert not any("codec" in key or "vae" in key for key in stage.state_dict())
    # diffusers, which knows no such class, is not told of it
    assert "decoder" not in json.loads((bundle / "model_index.json").read_text())


def test_decoder_learns_what_the_slow_pair_makes_of_pushed_latents(corpus: Path, bundle: Path):
    stage = DecoderStage(decoder_config(bundle), bundle=str(bundle), distilled_share=1.0, distilled_noise=0.0)
    datamodule = data(corpus)
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    latents, target = stage.pairs(batch, torch.Generator().manual_seed(0))
    folded = torch.nn.functional.pixel_unshuffle(latents, stage.codec.latent_patch)
    torch.testing.assert_close(target, stage.codec.decode(folded), atol=1e-5, rtol=1e-4)


def test_decoder_refuses_latents_of_another_vae(bundle: Path):
    with pytest.raises(MusiccmError, match="decoder.latent_bins is 3"):
        DecoderStage(decoder_config(bundle, latent_bins=3), bundle=str(bundle))


def test_audiomae(corpus: Path, tmp_path: Path):
    features = {"frames": 128, "bins": 64, "patch_size": 16, "width": 24, "depth": 2, "heads": 2, "input": "mel"}
    stage = AudioMaeStage(
        features, bundle=str(tmp_path), warmup_steps=1, decoder_width=16, decoder_depth=1, decoder_heads=2,
        statistics_batches=1, ema_decay=0.9,
    )
    run(stage, data(corpus), tmp_path)
    network = Bundle(tmp_path, {}, {}, torch.float32).evaluators["audiomae"]
    fresh = data(corpus)
    fresh.setup("fit")
    mel = stage.mel(next(iter(fresh.train_dataloader())).waveform_BS)
    normalised = network.normalise(mel)
    assert normalised.mean() == pytest.approx(0.0, abs=1e-3) and normalised.std() == pytest.approx(0.5, abs=1e-3)
    with torch.no_grad():
        for saved, trained in zip(network(mel), stage.best.features(mel), strict=True):
            torch.testing.assert_close(saved, trained)


class RandomLatents(pl.LightningDataModule):
    """Latents and unit conditions without meaning."""

    def batches(self) -> DataLoader:
        def draw(seed: int) -> LatentBatch:
            generator = torch.Generator().manual_seed(seed)
            latents = torch.randn(6, 4, 8, 4, generator=generator)
            text, audio = torch.nn.functional.normalize(torch.randn(2, 6, 32, generator=generator), dim=-1)
            return LatentBatch(latents, text, audio, [str(n) for n in range(6)], [""] * 6)

        return DataLoader([draw(seed) for seed in range(4)], batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self.batches()

    def val_dataloader(self) -> DataLoader:
        return self.batches()


def test_teacher(bundle: Path, tmp_path: Path):
    stage = TeacherStage(plain(make_unet().config), bundle=str(bundle), warmup_steps=1, ema_decay=0.9)
    quality = run(stage, RandomLatents(), tmp_path)
    assert {f"mse_quartile_{n}" for n in range(4)} <= set(quality)
    read = Bundle.from_pretrained(bundle)
    torch.testing.assert_close(read.unet.state_dict(), stage.ema.module.state_dict())
    assert read.scheduler_config["beta_schedule"] == "scaled_linear" and not read.scheduler_config["clip_sample"]


def test_teacher_starts_hearing_conditions_of_unit_length(bundle: Path):
    unet = make_unet()
    condition = torch.nn.functional.normalize(torch.randn(64, unet.class_embedding.in_features), dim=1)
    with torch.no_grad():
        deaf = unet.class_embedding(condition).std()
        scale_condition(unet)
        hears = unet.class_embedding(condition).std()
    assert deaf < 0.2 and 0.4 < hears < 0.8


def test_teacher_can_start_as_the_identity():
    torch.manual_seed(0)
    unet = make_unet()
    start_unet_at_identity(unet)
    z = torch.randn(4, 4, 32, 8)
    condition = torch.randn(4, unet.class_embedding.in_features)
    with torch.no_grad():
        again = unet(z, torch.full((4,), 900), None, class_labels=condition).sample
    assert (again - z).square().mean() < 0.01
    unet(z, torch.full((4,), 900), None, class_labels=condition).sample.square().sum().backward()
    assert unet.up_blocks[-1].resnets[-1].conv2.weight.grad.abs().sum() > 0  # the rest can join in
    narrow = UNet2DConditionModel.from_config({**unet.config, "in_channels": 12, "out_channels": 12})
    with pytest.raises(MusiccmError, match=r"block_out_channels\[0\] >= 24"):
        start_unet_at_identity(narrow)


def test_teacher_draws_conditions_in_the_stated_shares(bundle: Path):
    stage = TeacherStage(
        plain(make_unet().config), bundle=str(bundle), condition_dropout=0.2, audio_condition_share=0.25
    )
    stage.setup("fit")
    n = 4000
    text, audio = torch.full((n, 32), 5.0), torch.full((n, 32), 7.0)
    batch = LatentBatch(torch.zeros(n, 1, 1, 1), text, audio, [""] * n, [""] * n)
    first = stage.condition(batch, torch.Generator().manual_seed(0))[:, 0]
    null = Bundle.from_pretrained(bundle).conditioner().null(1)[0, 0]
    assert (first == 7.0).float().mean() == pytest.approx(0.8 * 0.25, abs=0.03)
    assert (first == 5.0).float().mean() == pytest.approx(0.8 * 0.75, abs=0.03)
    assert torch.isclose(first, null).float().mean() == pytest.approx(0.2, abs=0.03)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(corpus: Path, tmp_path: Path):
    def fit(resume: Path | None, **options: Any) -> TaggerStage:
        torch.manual_seed(1)
        stage = TaggerStage(SMALL_TAGGER | {"dropout": 0.0}, bundle=str(tmp_path / "b"), warmup_steps=1, ema_decay=0.5)
        trainer(tmp_path, 4, **options).fit(
            stage, datamodule=data(corpus), ckpt_path=resume, weights_only=True if resume else None
        )
        return stage

    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    whole = fit(None, callbacks=[saving], enable_checkpointing=True)
    resumed = fit(tmp_path / "step=2.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert resumed.train_seconds > 0


def test_warmup_then_half_a_cosine():
    factor = warmup_cosine(10, 110)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == pytest.approx(1.0) and factor(60) == pytest.approx(0.5) and factor(110) == pytest.approx(0.0)
