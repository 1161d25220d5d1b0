"""AudioMAE (Huang et al., arXiv 2207.06405) as an embedder, from the original names through timm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.mel import MelConfig
from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import SHORT, FrozenEmbedder, batches, windows_end_to_end
from musiccm.embedders.kaldi_fbank import FRAME, HOP, RATE_HZ, KaldiFbank
from musiccm.errors import MusiccmError
from musiccm.models.features import DECODER_KEYS, ViTConfig, ViTFeatures
from musiccm.models.state_dicts import require_fit

WINDOWS_PER_PASS = 8


class AudioMaeEmbedder(FrozenEmbedder):
    """The mean of the encoder's tokens, one row a clip.

    Clips go in windows of 10.24 s (1024 frames; the published shape) that lie end to end, the last shifted back
    to end with the clip; a clip's row is the mean over its windows. Shorter clips are filled up with zeros after the
    fbank, as in AudioMAE's own training.

    Args:
        checkpoint: `{"model": state_dict}` of the masked autoencoder, or its state dict; the decoder is passed over.
        config: Shape; None reads it from the weights (heads are 64 wide).
        where: The file, for messages.

    Raises:
        MusiccmError: The checkpoint is of another network.
    """

    def __init__(
        self, checkpoint: Mapping, config: ViTConfig | None = None, where: str = "AudioMAE checkpoint"
    ) -> None:
        state = {name: value for name, value in checkpoint.get("model", checkpoint).items()
                 if not name.startswith(DECODER_KEYS)}
        config = config or _config(state, where)
        super().__init__("audiomae", RATE_HZ, FRAME + (config.patch_size - 1) * HOP)
        self.network = ViTFeatures(config, MelConfig(n_mels=config.bins))
        require_fit(self.network.vit.state_dict(), state, where, "it is not AudioMAE's encoder")
        self.network.vit.load_state_dict(state)
        self.fbank, self.window = KaldiFbank(config.bins), config.frames * HOP
        self.freeze(
            self.network, frame=FRAME, hop=HOP, frames=config.frames, unheard=SHORT, mean=config.mean, std=config.std,
            heads=config.heads, fbank="kaldi, hanning", embedding="mean of tokens after the final norm",
        )

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip."""
        windows = windows_end_to_end(waveform_BS, self.window)
        flat = windows.flatten(0, 1)
        rows = torch.cat([self.network.embed(self._filled(self.fbank(flat[part])))
                          for part in batches(len(flat), 1, WINDOWS_PER_PASS)])
        return Embeddings(rows.unflatten(0, windows.shape[:2]).mean(dim=1), [1] * len(waveform_BS))

    def _filled(self, mel_BMN: Tensor) -> Tensor:
        """As many frames as the network takes."""
        frames = self.network.config.frames
        return F.pad(mel_BMN[:, :frames], (0, 0, 0, max(0, frames - mel_BMN.shape[1])))


def _config(state: Mapping[str, Tensor], where: str) -> ViTConfig:
    """The shape that the weights imply, on 128 bins."""
    if "fc_norm.weight" in state:
        raise MusiccmError(f"{where}: expected the pretrained AudioMAE, found one fine-tuned to classify (with "
                           "fc_norm); use pretrained.pth")
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in state]:
        raise MusiccmError(f"{where}: expected AudioMAE's weights, found none for {', '.join(missing)}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    bins = ViTConfig.bins
    tokens = state["pos_embed"].shape[1] - 1
    return ViTConfig(
        frames=tokens // (bins // patch) * patch, bins=bins, patch_size=patch, width=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}), heads=max(1, width // 64),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
