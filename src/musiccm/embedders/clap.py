"""CLAP embeds: transformers' folders, the bundle's own, and LAION's checkpoints, always through the same windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import SHORT, FrozenEmbedder, batches, full_float32, windows_end_to_end
from musiccm.embedders.weights import VARIABLE, weights_folder
from musiccm.errors import MusiccmError, reason
from musiccm.models.bundle.untrusted import checked_folder, load_tokenizer
from musiccm.models.conditioners.clap import ClapConditioner
from musiccm.models.conditioners.clap_names import (
    COMPUTED,
    clap_config_from_state,
    clap_state_from_original,
    load_clap_state,
    naming_clap,
)

WINDOWS_PER_PASS = 16
# What LAION's training fed its text tower at most.
LAION_MAX_TOKENS = 77
TOKENIZER = "roberta-base"
#: Of LAION's music checkpoint: HTSAT-base, without fusion.
MUSIC_CLAP = "channels 128, depths 2 2 12 2, embeddings 512"


class ClapEmbedder(FrozenEmbedder):
    """Unit vectors of a CLAP's audio tower, one row a clip; `text` gives those of captions in the same space.

    Clips go in windows of the extractor's length (LAION's: 10 s) that lie end to end, the last shifted back to
    end with the clip; a rest of up to 5 % of a window is left out, so that a clip of 10.24 s has one window, its first
    10 s. A clip's row is the normalised mean over its windows. Nothing is cropped at random. Shorter clips are repeated
    or padded by the extractor's rule.

    Args:
        conditioner: The CLAP, its tokenizer and its extractor's numbers.
        name: `clap`, or `clap_music` for LAION's music checkpoint alone; a bundle's own CLAP is `bundle_clap`: no
            metric borrows the name of LAION's networks.
    """

    def __init__(self, conditioner: ClapConditioner, name: str = "clap") -> None:
        front = conditioner.front_end
        super().__init__(name, front.sample_rate_hz, front.n_fft)
        self.conditioner = conditioner.float()
        # The front end's filters are computed, and their last bits differ between machines: hash which bins they cover.
        self.freeze(conditioner.clap, n_fft=front.n_fft, hop=front.hop_length, window=front.window_samples,
                    padding=front.padding, filters=(front.filters > 1e-6).sum(0).tolist(), unheard=SHORT)

    @property
    def width(self) -> int:
        """Width of a row."""
        return self.conditioner.width

    @torch.no_grad()
    def text(self, texts: list[str]) -> Tensor:
        """Embed captions, unit vectors of shape [B, D], float32."""
        with torch.autocast(self.device.type, enabled=False), full_float32():
            return self.conditioner.text(texts).float()

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip."""
        front = self.conditioner.front_end
        windows = windows_end_to_end(waveform_BS, front.window_samples)
        flat = windows.flatten(0, 1)
        rows = torch.cat([self.conditioner.embed_features(front(flat[part]))
                          for part in batches(len(flat), 1, WINDOWS_PER_PASS)])
        if windows.shape[1] > 1:
            rows = F.normalize(rows.unflatten(0, windows.shape[:2]).mean(dim=1), dim=-1)
        return Embeddings(rows, [1] * len(waveform_BS))


class SlidingClapEmbedder(FrozenEmbedder):
    """Unit vectors of a CLAP's audio tower, a row each second: what the tool fadtk calls `clap-laion-music`.

    A window begins at every whole second of the clip and lasts as long as the extractor's (10 s), zeros where the clip
    has ended: a clip of 10 s has ten rows, of which the first alone is all sound. Samples are rounded to 16 bits.
    Distances over these rows compare with those that were computed so, not with those of one row a clip.

    Args:
        conditioner: See `ClapEmbedder`.
        name: Of the metrics.
    """

    def __init__(self, conditioner: ClapConditioner, name: str = "clap_music_1s") -> None:
        front = conditioner.front_end
        super().__init__(name, front.sample_rate_hz, front.n_fft)
        self.conditioner = conditioner.float()
        self.freeze(conditioner.clap, n_fft=front.n_fft, hop=front.hop_length, window=front.window_samples,
                    padding="zeros", filters=(front.filters > 1e-6).sum(0).tolist(), step_s=1, bits=16)

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """A row for each second that begins within the clip."""
        front = self.conditioner.front_end
        rounded = (waveform_BS.clamp(-1, 1) * 32767).trunc() / 32767
        starts = range(0, waveform_BS.shape[1], self.sample_rate_hz)
        padded = F.pad(rounded, (0, front.window_samples))
        windows = [(clip, start) for clip in padded for start in starts]
        rows = torch.cat([
            self.conditioner.embed_features(front(torch.stack(
                [clip[start : start + front.window_samples] for clip, start in windows[part]])))
            for part in batches(len(windows), 1, WINDOWS_PER_PASS)])
        return Embeddings(rows, [len(starts)] * len(waveform_BS))


def conditioner_from_laion(
    checkpoint: Mapping, tokenizer: Any | None = None, where: str = "CLAP checkpoint", **text_config: Any
) -> ClapConditioner:
    """A CLAP from LAION's own names.

    Args:
        checkpoint: `{"state_dict": ...}`, or the state dict itself.
        tokenizer: RoBERTa's; None looks for `roberta-base` when a text is first embedded.
        where: The file, for messages.
        **text_config: Entries of transformers' `ClapTextConfig` that shapes cannot say.

    Returns:
        The conditioner, frozen.

    Raises:
        MusiccmError: The checkpoint is of another network.
    """
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    with naming_clap(where):
        state, _ = clap_state_from_original(checkpoint.get("state_dict", checkpoint))
        config = clap_config_from_state(state)
        config["text_config"] |= text_config
        clap = ClapModel(ClapConfig(**config))
        load_clap_state(clap, state)
    fusion = config["audio_config"]["enable_fusion"]
    extractor = ClapFeatureExtractor(
        feature_size=config["audio_config"]["num_mel_bins"], sampling_rate=48000, hop_length=480, max_length_s=10,
        fft_window_size=1024, frequency_min=50, frequency_max=14000, padding="repeatpad",
        truncation="fusion" if fusion else "rand_trunc",
    )
    return ClapConditioner(clap, tokenizer or LazyRoberta(), extractor)


def shape_of_clap(conditioner: ClapConditioner) -> str:
    """What tells LAION's networks apart: the sizes of the audio tower and of the embeddings, in words."""
    audio = conditioner.clap.config.audio_config
    return (f"channels {audio.patch_embeds_hidden_size}, depths {' '.join(map(str, audio.depths))}, embeddings "
            f"{conditioner.width}" + (", with fusion" if audio.enable_fusion else ""))


def require_music_clap(conditioner: ClapConditioner, name: str, where: object) -> None:
    """Refuse a CLAP under the name of LAION's music checkpoint.

    Args:
        conditioner: The CLAP.
        name: What the metrics would be called.
        where: Its file, for the message.

    Raises:
        MusiccmError: It has another size.
    """
    if (found := shape_of_clap(conditioner)) != MUSIC_CLAP:
        raise MusiccmError(f"{where}: {name}: expected LAION's music checkpoint (HTSAT-base: {MUSIC_CLAP}), found a "
                           f"CLAP of another size ({found}); name it `clap`")


def conditioner_from_folder(folder: str) -> ClapConditioner:
    """A CLAP from a folder or a hub id in transformers' layout: model, tokenizer and extractor side by side.

    Args:
        folder: A local folder, or `owner/name`.

    Returns:
        The conditioner, frozen.

    Raises:
        MusiccmError: A part cannot be read, or had.
    """
    from transformers import ClapFeatureExtractor, ClapModel

    try:
        path = checked_folder(folder, ["*.json", "*.txt", "*.safetensors"])
        clap, report = ClapModel.from_pretrained(path, local_files_only=True, use_safetensors=True,
                                                 trust_remote_code=False, dtype=torch.float32, output_loading_info=True)
        tokenizer = load_tokenizer(path)
        extractor = ClapFeatureExtractor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except MusiccmError:
        raise
    except Exception as error:  # a hub that is out of reach and a damaged file show in a dozen unrelated kinds
        raise MusiccmError(
            f"CLAP '{folder}': expected a folder or a hub id with a transformers ClapModel, its tokenizer and its "
            f"feature extractor, weights as safetensors; it could not be read ({reason(error)})"
        ) from error
    if missing := sorted(key for key in report.get("missing_keys", ()) if not COMPUTED.search(key)):
        raise MusiccmError(f"CLAP '{folder}': {len(missing)} weights are missing, first {', '.join(missing[:3])}")
    return ClapConditioner(clap, tokenizer, extractor, f"CLAP '{folder}': ")


class LazyRoberta:
    """RoBERTa's tokenizer, looked for when a text is first read: LAION's checkpoints come without one."""

    model_max_length = LAION_MAX_TOKENS

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise as the tokenizer itself does.

        Args:
            *args: Its own.
            **kwargs: Its own.

        Returns:
            Its encoding.

        Raises:
            MusiccmError: It is neither among the weights nor to be had from the hub.
        """
        if self._tokenizer is None:
            root = weights_folder()
            local = root / TOKENIZER if root is not None and (root / TOKENIZER).is_dir() else None
            try:
                self._tokenizer = load_tokenizer(local or f"FacebookAI/{TOKENIZER}")
            except MusiccmError:
                raise
            except Exception as error:  # the hub client raises a dozen unrelated kinds
                raise MusiccmError(
                    f"RoBERTa's tokenizer, which LAION's CLAP reads text with, could not be had "
                    f"({reason(error)}); put its files (tokenizer.json, tokenizer_config.json) into "
                    f"${VARIABLE}/{TOKENIZER}"
                ) from error
        return self._tokenizer(*args, **kwargs)
