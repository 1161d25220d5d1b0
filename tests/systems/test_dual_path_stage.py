"""The stage that trains the dual-path network: its draws, its loss, what it learns, and that a run resumes exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.data.sampling import KeyedLoader, ShuffledSampler
from musiccm.diffusion import Angle, noise_process
from musiccm.errors import MusiccmError
from musiccm.losses.velocity import draw_angles, si_snr, velocity_loss
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.renderer_unet import RendererUNet
from musiccm.models.melody.tokenizer import SemanticTokenizer, SemanticTokenizerConfig
from musiccm.systems.stages.dual_path import SCHEDULER, DualPathStage, no_tokens
from musiccm.systems.stages.renderer_unet import RendererUNetStage

FRAMES, TOKENS, WIDTH = 16, 4, 3
SHAPE: dict[str, Any] = {
    "channels": 2, "width": 16, "merged": [8], "segment": 8, "heads": 2, "coarse_layers": 1, "feed_forward": 16,
    "recurrent_width": 8, "angle_width": 8, "frames_per_token": 4, "frames": FRAMES}


def make_tokenizer(width: int = WIDTH) -> SemanticTokenizer:
    tokenizer = SemanticTokenizer(SemanticTokenizerConfig("tagger", "none", width, 64, width))
    tokenizer.centroids_KD.normal_(generator=torch.Generator().manual_seed(3))
    return tokenizer


def make_batch(items: int, seed: int, frames: int = FRAMES) -> LatentBatch:
    """Latents that the tokens say all about: in each channel the first two numbers of the token's vector."""
    generator, tokenizer = torch.Generator().manual_seed(seed), make_tokenizer()
    ids = torch.randint(tokenizer.codebook, (items, frames // 4), generator=generator)
    latents = tokenizer.vectors(ids)[..., :2].repeat_interleave(4, dim=1).transpose(1, 2)[..., None].contiguous()
    # raw, see `make_stage`
    return LatentBatch(20.0 * latents + 5.0, torch.zeros(items, 1), None, [str(i) for i in range(items)], [""] * items,
                       ids)


class Toy(pl.LightningDataModule):
    """Clips in a keyed order that a resumed run goes on in."""

    def __init__(self, clips: int, items: int) -> None:
        super().__init__()
        self.clips, self.items = make_batch(clips, 0), items

    def collate(self, drawn: list[int]) -> LatentBatch:
        ids = self.clips.semantic_BL
        assert ids is not None
        return LatentBatch(self.clips.latents_BCTF[drawn], torch.zeros(len(drawn), 1), None,
                           [str(i) for i in drawn], [""] * len(drawn), ids[drawn])

    def train_dataloader(self) -> KeyedLoader:
        size = len(self.clips)
        drawn = {(epoch, i): i for epoch in range(1000) for i in range(size)}
        return KeyedLoader(drawn, batch_size=self.items, sampler=ShuffledSampler(size, self.items),  # type: ignore
                           collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([make_batch(32, 1)], batch_size=None)


def make_stage(
    bundle: Path, kind: type[DualPathStage] = DualPathStage, shape: dict[str, Any] = SHAPE, **changed: Any
) -> DualPathStage:
    """A stage whose bundle has a tokenizer, and an audio VAE with the moments of `make_batch`'s latents."""
    torch.manual_seed(1)
    save_part(bundle, "semantic_tokenizer", make_tokenizer())
    save_part(bundle, "audio_vae", AudioVae({
        "latent_channels": 2, "strides": [2], "kernel_sizes": [3], "channels": [2], "depths": [0],
        "decoder_strides": [2], "decoder_kernel_sizes": [3], "decoder_channels": [2], "decoder_depths": [0],
        "divisor": 100.0, "latents_mean": [0.05, 0.05], "latents_std": [0.2, 0.2]}))
    (bundle / "model_index.json").write_text("{}")
    return kind(shape, bundle=str(bundle), **({"warmup_steps": 1, "lr": 1e-2, "ema_decay": 0.9} | changed))


def fit(stage: DualPathStage, steps: int, data: Toy, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"enable_checkpointing": False} | options
    pl.Trainer(
        max_steps=steps, accelerator="cpu", default_root_dir=stage.bundle, logger=False, num_sanity_val_steps=0,
        val_check_interval=steps, check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=1.0, **settings,
    ).fit(stage, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return json.loads((stage.bundle / "quality" / f"{stage.stage}.json").read_text())


def test_it_learns_what_the_tokens_say_and_leaves_a_part_and_its_process(tmp_path: Path) -> None:
    quality = fit(make_stage(tmp_path, held_chunks=[1, 2, 3]), 150, Toy(clips=3200, items=32))
    # a network that answers 0 has the velocity's own variance, 1
    assert quality["n"] == 32 and quality["mse"] < 0.4
    assert quality["mse"] < 0.6 * quality["mse_null"] and quality["mse_continuation"] < 0.4
    assert quality["si_snri"] > 8
    assert {f"mse_quarter_{i}" for i in range(4)} <= set(quality)
    bundle = Bundle.from_pretrained(tmp_path, [])
    assert isinstance(bundle.part("dual_path"), DualPath)
    assert isinstance(noise_process(json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())), Angle)
    assert noise_process(SCHEDULER).num_train_timesteps == 1000
    again = make_stage(tmp_path / "again", start_from=str(tmp_path))
    torch.testing.assert_close(again.part.state_dict(), bundle.part("dual_path").state_dict())


def test_a_u_net_in_its_place_is_trained_and_measured_alike(tmp_path: Path) -> None:
    shape = {"channels": 2, "widths": [16, 32], "attention": [], "told_width": 16, "angle_width": 8,
             "frames_per_token": 4, "frames": FRAMES}
    stage = make_stage(tmp_path, RendererUNetStage, shape, held_chunks=[1, 2, 3])
    quality = fit(stage, 150, Toy(clips=3200, items=32))
    assert quality["n"] == 32 and quality["stage"] == "unet" and quality["mse"] < 0.4
    assert quality["mse"] < 0.6 * quality["mse_null"] and quality["si_snri"] > 8
    assert quality["parameters"] == sum(p.numel() for p in stage.part.parameters())
    assert set(quality) >= {"mse_continuation", *(f"mse_quarter_{i}" for i in range(4))}
    kept = RendererUNet.from_pretrained(tmp_path / "renderer_unet")
    torch.testing.assert_close(kept.state_dict(), stage.best.state_dict())
    assert not (tmp_path / "dual_path").exists(), "it is no part of the bundle"
    with pytest.raises(MusiccmError, match="init_args.unet.frames: expected clips of 16 latent frames, found 24"):
        stage.latents(make_batch(1, 0, 24))
    with pytest.raises(MusiccmError, match="init_args.unet.token_width is 9"):
        make_stage(tmp_path, RendererUNetStage, {**shape, "token_width": 9})


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    data, options = Toy(clips=20, items=4), {"inpainting_share": 0.2}
    whole = make_stage(tmp_path / "b", **options)
    fit(whole, 4, data, callbacks=[saving], enable_checkpointing=True)
    resumed = make_stage(tmp_path / "b", **options)
    fit(resumed, 4, Toy(clips=20, items=4), tmp_path / "step=2.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(MusiccmError, match="condition_dropout"):
        fit(make_stage(tmp_path / "b", condition_dropout=0.5, **options), 4, data, tmp_path / "step=2.ckpt")


def test_angles_are_drawn_in_the_stated_shares() -> None:
    n, generator = 4000, torch.Generator().manual_seed(0)
    angle = draw_angles(n, 4, generator, 0.25, [1, 3], 0.1)
    clean = angle == 0
    assert (angle >= 0).all() and (angle < math.pi / 2).all()
    starts = torch.stack([clean[:, :1].all(1) & ~clean[:, 1:].any(1), clean[:, :3].all(1) & ~clean[:, 3]])
    holes = clean.sum(1) == 3
    # three clean chunks before a noisy one are a continuation or, one time in four, a hole
    assert starts[0].float().mean() == pytest.approx(0.125, abs=0.02)
    assert starts[1].float().mean() == pytest.approx(0.125 + 0.025, abs=0.02)
    assert holes.float().mean() == pytest.approx(0.125 + 0.1, abs=0.02)
    assert clean.any(1).float().mean() == pytest.approx(0.35, abs=0.02)
    free = angle[~clean.any(1)]
    # uniform over the quarter turn, and each chunk by itself
    assert free.mean().item() == pytest.approx(math.pi / 4, abs=0.02)
    assert free.std().item() == pytest.approx(math.pi / 2 / math.sqrt(12), abs=0.01)
    assert (torch.corrcoef(free.T) - torch.eye(4)).abs().max() < 0.06
    assert not (draw_angles(n, 4, generator) == 0).any()


def test_the_loss_is_the_error_of_the_velocity_where_there_is_noise() -> None:
    v, target = torch.randn(2, 3, 2, 6, 1).unbind(0)
    angle = torch.tensor([[0.0, 0.0, 0.5, 0.5, 1.0, 1.0], [0.2] * 6, [0.0] * 6])
    total, parts = velocity_loss(v, target, angle)
    kept = [(i, t) for i in range(3) for t in range(6) if angle[i, t] > 0]
    by_hand = sum(((v[i, :, t] - target[i, :, t]) ** 2).mean() for i, t in kept) / len(kept)
    torch.testing.assert_close(total, by_hand)
    assert parts["mse_BT"].shape == (3, 6)
    assert velocity_loss(v, target, torch.zeros(3, 6))[0] == 0  # nothing to learn from, and nothing that is not finite


def test_si_snr_is_that_of_the_part_along_the_signal() -> None:
    signal = torch.randn(2, 500, dtype=torch.float64)
    signal = signal - signal.mean(1, keepdim=True)
    other = torch.randn(2, 500, dtype=torch.float64)
    other = other - other.mean(1, keepdim=True)
    other = other - (other * signal).sum(1, keepdim=True) / signal.square().sum(1, keepdim=True) * signal
    other = other * (signal.norm(dim=1) / other.norm(dim=1))[:, None]
    expected = torch.full((2,), 20.0, dtype=torch.float64)
    torch.testing.assert_close(si_snr(3 * (signal + 0.1 * other) + 7, signal), expected)


def test_tokens_are_dropped_in_the_stated_share(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, condition_dropout=0.3, ema_decay=None)
    seen: list[Tensor] = []

    def watched(z: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, **more: Any) -> tuple[Tensor]:
        seen.append(mask.any(1))
        return (z,)

    stage.part.forward = watched  # type: ignore[method-assign, assignment]
    stage.loss(make_batch(2000, 0), torch.Generator().manual_seed(0))
    assert (~seen[0]).float().mean() == pytest.approx(0.3, abs=0.03)
    assert not no_tokens(stage.condition(make_batch(2, 0))).mask_BL.any()  # type: ignore[union-attr]


def test_tokens_are_told_by_their_centroids_and_latents_normalised(tmp_path: Path) -> None:
    stage, batch = make_stage(tmp_path), make_batch(3, 5)
    assert stage.part.shape.token_width == WIDTH  # of the tokenizer, where it is not stated
    assert batch.semantic_BL is not None
    cond = stage.condition(batch)
    assert cond.tokens_BLD is not None and cond.mask_BL is not None and cond.mask_BL.all()
    torch.testing.assert_close(cond.tokens_BLD[2, 1], make_tokenizer().centroids_KD[batch.semantic_BL[2, 1]])
    # raw = 20 z + 5, and the audio VAE's moments say so
    torch.testing.assert_close(stage.latents(batch), (batch.latents_BCTF - 5.0) / 20.0)


def test_bad_data_and_settings_are_refused(tmp_path: Path) -> None:
    stage, generator = make_stage(tmp_path), torch.Generator()
    with pytest.raises(MusiccmError, match="dual_path.frames: expected clips of 16 latent frames, found 20"):
        stage.loss(make_batch(2, 0, 20), generator)
    short = make_batch(2, 0)
    assert short.semantic_BL is not None
    short.semantic_BL = short.semantic_BL[:, :3]
    with pytest.raises(MusiccmError, match="16 latent frames need 4 semantic tokens"):
        stage.loss(short, generator)
    short.semantic_BL = None
    with pytest.raises(MusiccmError, match="data.tokens_dir: expected batches with semantic tokens"):
        stage.loss(short, generator)
    with pytest.raises(MusiccmError, match="dual_path.token_width is 4, and the tokenizer's vectors have 3"):
        DualPathStage({**SHAPE, "token_width": 4}, bundle=str(tmp_path))
    plain = make_stage(tmp_path)
    none = {"latents_mean": None, "latents_std": None}
    save_part(tmp_path, "audio_vae", AudioVae({**vars(stage._vae[0].config), **none}))
    with pytest.raises(MusiccmError, match="has no latents_mean and latents_std"):
        plain.loss(make_batch(2, 0), generator)
    with pytest.raises(MusiccmError, match="no semantic tokenizer here"):
        DualPathStage(SHAPE, bundle=str(tmp_path), tokenizer=str(tmp_path / "semantic_tokenizer"))
    for changed, message in (({"held_chunks": [4]}, "held_chunks: expected numbers from 1 to below chunks = 4"),
                             ({"held_chunks": [0]}, "held_chunks"), ({"held_chunks": []}, "held_chunks"),
                             ({"chunks": 1}, "set continuation_share: 0"),
                             ({"chunks": 17, "continuation_share": 0.0}, "chunks: expected at most 16"),
                             ({"continuation_share": 0.6, "inpainting_share": 0.5}, "at most 1 together"),
                             ({"condition_dropout": 1.5}, "condition_dropout")):
        with pytest.raises(MusiccmError, match=message):
            make_stage(tmp_path, **changed)
