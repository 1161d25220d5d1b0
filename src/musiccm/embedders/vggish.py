"""VGGish (Hershey et al., arXiv 1609.09430), from torchvggish's checkpoint, with its front end in torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import FrozenEmbedder, batches
from musiccm.models.state_dicts import require_fit

RATE_HZ = 16000
FRAME, HOP, N_FFT = 400, 160, 512
MEL_BINS, LOWEST_HZ, HIGHEST_HZ, OFFSET = 64, 125.0, 7500.0, 0.01
PATCH_FRAMES = 96
# A patch of 96 frames takes 15,600 samples, and the next begins 15,360 later: patches share no frame.
PATCH, PATCH_HOP = FRAME + (PATCH_FRAMES - 1) * HOP, PATCH_FRAMES * HOP
PATCHES_PER_PASS = 64


class VggishFrontEnd(nn.Module):
    """Log-mel patches, computed in torch on a batch (the original computes clip by clip in NumPy)."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME, periodic=True), persistent=False)
        self.register_buffer("filters", mel_filters().float(), persistent=False)

    def forward(self, patch_PS: Tensor) -> Tensor:
        """Patches of 15,600 samples as [P, 1, 96 frames, 64 bins]."""
        frames = patch_PS.unfold(-1, FRAME, HOP) * self.window
        magnitude = torch.fft.rfft(frames, N_FFT).abs()
        return (magnitude @ self.filters + OFFSET).log().unsqueeze(1)


def mel_filters() -> Tensor:
    """Triangles that are linear in HTK mels (not in hertz), peak 1, nothing at 0 Hz: [257, 64], float64."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    bins = mel(torch.linspace(0.0, RATE_HZ / 2, N_FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, MEL_BINS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clamp(min=0.0)
    filters[0] = 0.0
    return filters


class Vggish(nn.Module):
    """The network under torchvggish's names, without the final ReLU and without PCA, as FD_vgg is published."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for outputs in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            if outputs:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
        )

    def forward(self, patch_P1MN: Tensor) -> Tensor:
        """Patches to [P, 128]; the linear layers were trained on channels-last features."""
        return self.embeddings(self.features(patch_P1MN).permute(0, 2, 3, 1).flatten(1))


class VggishEmbedder(FrozenEmbedder):
    """The network of FD_vgg: 128 features for every 0.96 s, all of them rows; a rest of less than a patch is left out.

    Args:
        checkpoint: torchvggish's state dict (`features.*`, `embeddings.*`).
        where: The file, for messages.

    Raises:
        MusiccmError: The checkpoint is of another network.
    """

    def __init__(self, checkpoint: Mapping[str, Tensor], where: str = "VGGish checkpoint") -> None:
        super().__init__("vgg", RATE_HZ, PATCH)
        # Checkpoints saved with the whole torchvggish class carry its PCA step, which FD_vgg leaves out.
        state = {name: value for name, value in checkpoint.items() if not name.startswith("pproc.")}
        with torch.device("meta"):
            network = Vggish()
        require_fit(network.state_dict(), state, where, "it is not torchvggish's checkpoint")
        network.load_state_dict(state, assign=True)
        self.network, self.front_end = network.float(), VggishFrontEnd()
        self.freeze(self.network, frame=FRAME, hop=HOP, n_fft=N_FFT, bins=MEL_BINS, lowest_hz=LOWEST_HZ,
                    highest_hz=HIGHEST_HZ, offset=OFFSET, patch=PATCH, embedding="before the final ReLU, no PCA")

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a patch."""
        patches = waveform_BS.unfold(-1, PATCH, PATCH_HOP)
        clips, count = patches.shape[:2]
        flat = patches.flatten(0, 1)
        rows = [self.network(self.front_end(flat[part])) for part in batches(len(flat), 1, PATCHES_PER_PASS)]
        return Embeddings(torch.cat(rows), [count] * clips)
