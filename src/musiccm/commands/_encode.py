"""Encoding a corpus: windows in, moments of the VAE and CLAP embeddings out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from musiccm.audio import LogMel
from musiccm.audio.windows import read_window
from musiccm.config import load_experiment
from musiccm.data.fingerprint import ENCODING_PARTS, bundle_fingerprint
from musiccm.data.labels import Clip
from musiccm.data.latents import Window, plan_windows, write_cache
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle


def data_module(configs: list[str], overrides: dict[str, Any]) -> MusicDataModule:
    """Build the data module of an experiment file.

    Args:
        configs: Experiment files, later ones laid over earlier ones.
        overrides: Arguments that win over `data.init_args`.

    Returns:
        The data module.

    Raises:
        MusiccmError: The file has no data section, or one with unknown or missing keys.
    """
    data = load_experiment(*configs).get("data")
    if not isinstance(data, dict) or not isinstance(data.get("init_args"), dict):
        raise MusiccmError(f"{configs[-1]}: expected a section data with class_path and init_args, found {data!r}")
    arguments = {**data["init_args"], **overrides}
    for key in ("root", "bundle", "cache_dir"):
        if not arguments.get(key) and not (key == "root" and arguments.get("corpora")):
            raise MusiccmError(f"{configs[-1]}: data.init_args.{key} is needed to encode latents, and is not set")
    try:
        return MusicDataModule(**arguments)
    except TypeError as error:
        raise MusiccmError(f"{configs[-1]}: data.init_args do not fit MusicDataModule: {error}") from error


class WindowEncoder:
    """Encodes windows with the VAE and both CLAP towers of a bundle.

    Args:
        bundle: The bundle.
        data: The data module: window length and rate.
        batch_size: Windows at a time.
        device: Where to compute.

    Raises:
        MusiccmError: The window length or rate does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, data: MusicDataModule, batch_size: int, device: str) -> None:
        self.data, self.batch_size, self.device = data, batch_size, device
        self.codec = bundle.codec(with_vocoder=False).to(device)
        self.conditioner = bundle.conditioner().to(device)
        self.mel = LogMel(bundle.mel).to(device)
        if data.sample_rate_hz != bundle.mel.sample_rate_hz:
            raise MusiccmError(f"data.sample_rate_hz is {data.sample_rate_hz}, but {bundle.path} works at "
                               f"{bundle.mel.sample_rate_hz}; set it to that")
        if (bundle.path / "unet").is_dir():
            samples = bundle.latent_shape()[1] * self.codec.downsampling * bundle.mel.hop_length
            if samples != data.clip_samples:
                raise MusiccmError(f"data.clip_samples is {data.clip_samples}, but the U-Net of {bundle.path} was "
                                   f"trained on {samples}; set it to that")

    @torch.inference_mode()
    def __call__(self, windows: list[Window], clips: dict[str, Clip], bar: tqdm) -> dict[str, Tensor]:
        """Encode a shard.

        Args:
            windows: What to encode.
            clips: Clips by id.
            bar: Told of every batch.

        Returns:
            `mean`, `std` [n, C, T, F], `clap_audio` [n, D], `clap_text` [all captions in order, D].
        """
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "clap_audio": [], "clap_text": []}
        for first in range(0, len(windows), self.batch_size):
            batch = windows[first : first + self.batch_size]
            waveform_BS = torch.stack([self._read(clips[window.clip_id], window.start) for window in batch])
            waveform_BS = waveform_BS.to(self.device)
            mean, std = self.codec.encode(self.mel(waveform_BS))
            captions = [caption for window in batch for caption in window.captions]
            encoded = {
                "mean": mean,
                "std": std,
                "clap_audio": self.conditioner.audio(waveform_BS, self.data.sample_rate_hz),
                "clap_text": self.conditioner.text(captions),
            }
            for name, tensor in encoded.items():
                parts[name].append(tensor.cpu())
            bar.update(len(batch))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _read(self, clip: Clip, start: int) -> Tensor:
        return read_window(clip.path, clip.audio, self.data.clip_samples, self.data.sample_rate_hz, start)


def encode_corpus(
    configs: list[str], overrides: dict[str, Any], batch_size: int = 16, device: str = "auto", overwrite: bool = False
) -> None:
    """Encode both folders of an experiment's corpus into its latent cache; a killed run goes on where it stopped.

    Args:
        configs: Experiment files.
        overrides: Arguments that win over `data.init_args`.
        batch_size: Windows at a time.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: Replace a cache that was made from something else.

    Raises:
        MusiccmError: Bad configuration, corpus, bundle or cache, each named.
    """
    data = data_module(configs, {**overrides, "kind": "waveform"})
    data.setup("test")
    bundle = Bundle.from_pretrained(str(data.bundle), parts=ENCODING_PARTS)
    model = bundle_fingerprint(bundle.path)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    encoder = WindowEncoder(bundle, data, batch_size, device)
    for split in ("train", "test"):
        for name, report in data.reports.items():
            if name.split("/")[-1] in ((split, "validation") if split == "train" else (split,)):
                print(report)
        clips = {clip.id: clip for clip in data.clips(split)}
        windows = plan_windows(list(clips.values()), data.clip_samples, data.sample_rate_hz, data.windows_per_track)
        folder = Path(str(data.cache_dir)) / split
        with tqdm(total=len(windows), desc=f"encoding {split}", unit="window") as bar:

            def encode(part: list[Window], clips: dict[str, Clip] = clips, bar: tqdm = bar) -> dict[str, Tensor]:
                return encoder(part, clips, bar)

            def skipped(count: int, bar: tqdm = bar) -> None:
                bar.initial += count  # counts as done, but not towards the rate
                bar.update(count)

            write_cache(folder, data.latent_key(split, model), windows, encode, overwrite=overwrite, skipped=skipped)
