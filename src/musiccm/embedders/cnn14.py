"""PANN's Cnn14 (Kong et al., arXiv 1912.10211), from the published checkpoints at 16 and 32 kHz."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import FrozenEmbedder, batches
from musiccm.errors import MusiccmError
from musiccm.models.acceleration.winograd import WinogradConv2d, fold_batch_norm
from musiccm.models.state_dicts import require_fit

CHANNELS = (1, 64, 128, 256, 512, 1024, 2048)
MEL_BINS, CLASSES, EMBEDDING = 64, 527, 2048
# Points of the Fourier transform in a file -> rate it is for, hop.
RATES = {256: (8000, 80), 512: (16000, 160), 1024: (32000, 320)}
NAMES = {"pann": 16000, "pann32k": 32000}
FLOOR = 1e-10
# From this width on Winograd's transforms cost less than they save.
WINOGRAD_CHANNELS = 256
# Frames that one feature sees: five halvings; two convolutions of width 3 a block see 2 * (1 + 2 + ... + 32) = 126
# frames to either side, rounded up to whole strides.
STRIDE, HALO = 32, 128
# Frames of one pass through the convolutions: their first activations take 16 kB a frame, a few are alive at once.
FRAMES_PER_PASS, FRAMES_PER_CHUNK = 8192, 4096

FRONT_END = {
    "spectrogram_extractor.stft.conv_real.weight": "real",
    "spectrogram_extractor.stft.conv_imag.weight": "imaginary",
    "logmel_extractor.melW": "filters",
}


class _Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(x)))


class _CpuBlock(nn.Module):
    """The same, as a CPU does it fastest: norms folded into the kernels, channels last, Winograd where it is wide."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _cpu_convolution(conv, norm) for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = F.relu_(layer(x))
        return x


def _cpu_convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    weight, bias = fold_batch_norm(conv, norm)
    if conv.in_channels >= WINOGRAD_CHANNELS:
        return WinogradConv2d(weight, bias)
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    folded.weight.data, folded.bias.data = weight, bias  # type: ignore[union-attr]
    return folded.to(memory_format=torch.channels_last)


class Cnn14(nn.Module):
    """The network behind the log-mel, under the published names.

    Args:
        n_fft: Points of the Fourier transform of the front end.
        hop: Samples between frames.
    """

    real: Tensor
    imaginary: Tensor
    filters: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        bins = n_fft // 2 + 1
        self.register_buffer("real", torch.zeros(bins, 1, n_fft))
        self.register_buffer("imaginary", torch.zeros(bins, 1, n_fft))
        self.register_buffer("filters", torch.zeros(bins, MEL_BINS))
        self.bn0 = nn.BatchNorm2d(MEL_BINS)
        for index in range(1, len(CHANNELS)):
            self.add_module(f"conv_block{index}", _Block(CHANNELS[index - 1], CHANNELS[index]))
        self.fc1 = nn.Linear(CHANNELS[-1], EMBEDDING)
        self.fc_audioset = nn.Linear(EMBEDDING, CLASSES)

    def for_cpu(self) -> None:
        """Put the blocks into the form that a CPU computes fastest; outputs change by rounding only."""
        for index in range(1, len(CHANNELS)):
            name = f"conv_block{index}"
            self.add_module(name, _CpuBlock(self.get_submodule(name)))  # type: ignore[arg-type]

    def log_mel(self, padded_BS: Tensor) -> Tensor:
        """Decibel mel of frames without further padding, [B, frames, bins]: the file's kernels, as a matrix product."""
        kernels = torch.cat([self.real, self.imaginary]).squeeze(1).T
        spectrum = padded_BS.unfold(-1, self.n_fft, self.hop) @ kernels
        real, imaginary = spectrum.chunk(2, dim=-1)
        power = real.square() + imaginary.square()
        return 10.0 * (power @ self.filters).clamp(min=FLOOR).log10()

    def convolve(self, mel_BMN: Tensor) -> Tensor:
        """The convolutions, and the mean over frequency: [B, 2048, frames // 32]."""
        x = self.bn0(mel_BMN.transpose(1, 2).unsqueeze(-1)).transpose(1, 3)
        for index in range(1, len(CHANNELS)):
            x = self.get_submodule(f"conv_block{index}")(x)
            if index < len(CHANNELS) - 1:
                x = F.avg_pool2d(x, 2)
        return x.mean(dim=3)

    def over_time(self, waveform_BS: Tensor) -> Tensor:
        """Features over time of whole clips, [B, 2048, frames // 32], in bounded memory.

        A chunk is given as many frames beyond its ends as its features can see, which makes the outcome that of the
        whole clip at once.
        """
        frames = waveform_BS.shape[-1] // self.hop + 1
        padded = F.pad(waveform_BS.unsqueeze(1), (self.n_fft // 2,) * 2, mode="reflect").squeeze(1)
        parts = []
        for start in range(0, frames - frames % STRIDE, FRAMES_PER_CHUNK):
            first, last = max(0, start - HALO), min(frames, start + FRAMES_PER_CHUNK + HALO)
            mel = self.log_mel(padded[:, first * self.hop : (last - 1) * self.hop + self.n_fft])
            skip = (start - first) // STRIDE
            parts.append(self.convolve(mel)[:, :, skip : skip + FRAMES_PER_CHUNK // STRIDE])
        return torch.cat(parts, dim=2)

    def forward(self, waveform_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (fc1 after its ReLU), [B, 2048], and logits before the sigmoid, [B, 527]."""
        x = self.over_time(waveform_BS)
        embedding = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


class PannEmbedder(FrozenEmbedder):
    """The network of FD_pann: 2048 features (fc1 after its ReLU) and 527 AudioSet logits, one row a clip of any length.

    A clip goes in whole, as published: the maximum and the mean over time are taken over all of it, however long. The
    shortest that reaches them is 32 frames, 0.31 s.

    Args:
        name: `pann` (16 kHz) or `pann32k`.
        checkpoint: The published file's content, `{"model": state_dict, ...}`, or the state dict itself.
        where: The file, for messages.

    Raises:
        MusiccmError: The checkpoint is of another network, or for another rate.
    """

    def __init__(self, name: str, checkpoint: Mapping, where: str = "Cnn14 checkpoint") -> None:
        network = _network(checkpoint.get("model", checkpoint), NAMES[name], where)
        super().__init__(name, NAMES[name], network.hop * (STRIDE - 1))
        self.network = network
        self.freeze(self.network, hop=network.hop, floor=FLOOR, padding="reflect", embedding="fc1 after ReLU")

    def for_cpu(self) -> None:
        """Fold norms and use Winograd's convolutions: half the time, and 1.2 GB more of memory."""
        self.network.for_cpu()

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip."""
        rows = []
        for part in batches(len(waveform_BS), waveform_BS.shape[-1] // self.network.hop, FRAMES_PER_PASS):
            rows.append(self.network(waveform_BS[part]))
        embedding, logits = (torch.cat(column) for column in zip(*rows, strict=True))
        return Embeddings(embedding, [1] * len(embedding), logits)


def _network(state: Mapping[str, Tensor], rate_hz: int, where: str) -> Cnn14:
    """The file's network, if it is Cnn14 and for the wanted rate."""
    key = "spectrogram_extractor.stft.conv_real.weight"
    if key not in state:
        raise MusiccmError(f"{where}: expected a Cnn14 checkpoint with {key}, found "
                           f"{', '.join(map(str, list(state)[:3])) or 'nothing'}, ...")
    n_fft = state[key].shape[-1]
    found_hz, hop = RATES.get(n_fft, (0, 0))
    if found_hz != rate_hz:
        whose = f"for {found_hz} Hz" if found_hz else "of no published Cnn14"
        wanted = next(points for points, (rate, _) in RATES.items() if rate == rate_hz)
        raise MusiccmError(f"{where}: expected the Cnn14 for {rate_hz} Hz, whose {key} has {wanted} points; found "
                           f"{n_fft} points, which is {whose}; use the file for {rate_hz} Hz")
    renamed = {FRONT_END.get(name, name): value for name, value in state.items()}
    with torch.device("meta"):
        network = Cnn14(n_fft, hop)
    require_fit(network.state_dict(), renamed, where, "it is not the published Cnn14")
    network.load_state_dict(renamed, assign=True)
    return network.float()
