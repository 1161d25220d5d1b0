"""What semantic tokens are clusters of: features of sound at 25 Hz, from a bundle's own networks or others, by name."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.mel import LogMel
from musiccm.audio.resample import resample
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import freeze, part_files
from musiccm.models.bundle.untrusted import CODE_KEYS, check_folder
from musiccm.models.conditioners.clap import ClapConditioner
from musiccm.models.melody.token_rate import to_token_rate, token_count
from musiccm.models.tagger import Tagger
from musiccm.terminal import say
from musiccm.texts import read_json

#: Whose weights may not be used for profit, and under which licence they are.
NON_COMMERCIAL = {"mert": "CC BY-NC 4.0", "muq": "CC BY-NC 4.0"}


class FeatureSource(nn.Module):
    """Frozen features of sound, a vector every 40 ms.

    A subclass gives `frames`, and sets `sample_rate_hz`, `frame_rate_hz` and `width`.

    Args:
        name: A key of `SOURCES`.
        fingerprint: Of the files that the network was read from.
        layer: Which of its layers; None for the one that it takes of itself.

    Attributes:
        sample_rate_hz: What the network takes; other sound is resampled.
        frame_rate_hz: Of `frames`.
        width: Of a vector.
    """

    sample_rate_hz: int
    frame_rate_hz: float
    width: int

    def __init__(self, name: str, fingerprint: str, layer: int | None = None) -> None:
        super().__init__()
        self.name, self.fingerprint, self.layer = name, fingerprint, layer

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """Features [B, T, D] at the network's own rate, of sound at `sample_rate_hz`."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        """Compute features on the grid of tokens.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate.

        Returns:
            [B, L, D], float32, 25 a second.

        Raises:
            MusiccmError: The waveforms are not finite or not [B, S], or their length is not on the grid.
        """
        if waveform_BS.dim() != 2 or not waveform_BS.numel() or not torch.isfinite(waveform_BS).all():
            raise MusiccmError("semantic tokens: expected finite waveforms of shape [B, S], found shape "
                               f"{tuple(waveform_BS.shape)}")
        tokens = token_count(waveform_BS.shape[1], sample_rate_hz)
        features_BTD = self.frames(resample(waveform_BS.float(), sample_rate_hz, self.sample_rate_hz))
        return to_token_rate(features_BTD.float(), self.frame_rate_hz, tokens)


class TaggerFrames(FeatureSource):
    """A bundle's tagger before it pools over time: four mel frames a vector, 25 a second at a hop of 10 ms."""

    def __init__(self, bundle: Bundle, layer: int | None = None) -> None:
        no_layer("tagger", layer)
        super().__init__("tagger", bundle.content_hash(["evaluators/tagger"]))
        self.mel = LogMel(bundle.mel)
        self.tagger: Tagger = bundle.evaluators["tagger"]  # type: ignore[assignment]
        self.sample_rate_hz = bundle.mel.sample_rate_hz
        self.frame_rate_hz = bundle.mel.sample_rate_hz / bundle.mel.hop_length / 4
        self.width = self.tagger.config.width

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """See `FeatureSource`."""
        return self.tagger.time_map(self.mel(waveform_BS)).transpose(1, 2)


class ClapFrames(FeatureSource):
    """The audio tower of a bundle's CLAP, in windows that lie end to end: the mean over frequency of a stage's output.

    Args:
        bundle: The bundle.
        layer: Which stage; -1, the last one, if not given. Earlier stages are finer in time.

    Raises:
        MusiccmError: The bundle has no CLAP with an audio tower, or the tower has no such stage.
    """

    def __init__(self, bundle: Bundle, layer: int | None = None) -> None:
        super().__init__("clap", bundle.content_hash(["text_encoder", "feature_extractor"]), layer)
        conditioner: Any = bundle.conditioner()
        if not isinstance(conditioner, ClapConditioner):
            raise MusiccmError(f"{bundle.path}: its text encoder embeds no audio; features clap need a CLAP")
        self.front_end, self.clap = conditioner.front_end, conditioner.clap
        audio = self.clap.config.audio_config
        stages = 1 + len(audio.depths)
        self.place = check_layer("clap", -1 if layer is None else layer, stages)
        self.sample_rate_hz = self.front_end.sample_rate_hz
        # Each stage but the last merges patches, two by two in time.
        merged = min(self.place, len(audio.depths) - 1)
        self.width = audio.patch_embeds_hidden_size * 2**merged
        self.fold = audio.spec_size // audio.num_mel_bins
        # positions in time of a window, whatever its seconds
        positions = audio.spec_size * self.fold // audio.patch_stride[1] // 2**merged
        self.frame_rate_hz = positions * self.sample_rate_hz / self.front_end.window_samples

    def window(self, waveform_BS: Tensor) -> Tensor:
        """Positions of one window, [B, T, D]; shorter sound is filled up as CLAP does."""
        features = self.front_end(waveform_BS).to(next(self.clap.parameters()).dtype)
        is_longer = None
        if self.clap.config.audio_config.enable_fusion:
            features = features.repeat(1, 4, 1, 1)
            is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        output = self.clap.audio_model(input_features=features, is_longer=is_longer, output_hidden_states=True)
        state_BDHW = output.hidden_states[self.place]
        # The tower folds time: its image is the clip's parts below each other.
        batch, width, rows, columns = state_BDHW.shape
        parts = state_BDHW.view(batch, width, self.fold, rows // self.fold, columns).mean(dim=3)
        return parts.reshape(batch, width, self.fold * columns).transpose(1, 2)

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        """See `FeatureSource`; the last window ends with the sound."""
        window = self.front_end.window_samples
        length = token_count(window, self.sample_rate_hz)
        total = token_count(waveform_BS.shape[-1], sample_rate_hz)
        if total <= length:
            return super().forward(waveform_BS, sample_rate_hz)
        # cut at the input's own rate, where the tokens' borders are whole samples
        unit = waveform_BS.shape[-1] // total
        found: list[Tensor] = []
        done = 0
        while done < total:
            start = min(done, total - length)
            part = super().forward(waveform_BS[:, start * unit : (start + length) * unit], sample_rate_hz)
            found.append(part[:, done - start :])
            done = start + length
        return torch.cat(found, dim=1)

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """See `FeatureSource`."""
        return self.window(waveform_BS)


class SpeechFrames(FeatureSource):
    """HuBERT and its kind (transformers): 50 vectors a second, of which two make a token.

    Args:
        name: `hubert`, `wav2vec2-conformer` or `mert`.
        folder: Where its files are.
        layer: Which layer's output, 0 being what the first one takes in; the one in the middle if not given, which says
            more of what is played than the last (MERT, table 3; MusicLM takes layer 7 of 12).

    Raises:
        MusiccmError: The files are of another network, or damaged.
    """

    def __init__(self, name: str, folder: Path, layer: int | None = None) -> None:
        super().__init__(name, folder_fingerprint(folder), layer)
        self.network = load_transformer(name, folder)
        config = self.network.config
        self.place = check_layer(name, config.num_hidden_layers // 2 if layer is None else layer,
                                 config.num_hidden_layers + 1)
        reader = folder / "preprocessor_config.json"
        stated = read_json(reader, "a feature extractor's numbers") if reader.is_file() else {}
        self.sample_rate_hz = int(stated.get("sampling_rate", 16000))
        self.normalised = bool(stated.get("do_normalize", True))
        self.width = config.hidden_size
        hop, field = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        self.frame_rate_hz, self.margin = self.sample_rate_hz / hop, field - hop

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """See `FeatureSource`; what the first convolutions cut is put around the sound as silence."""
        if self.normalised:
            mean, variance = waveform_BS.mean(1, keepdim=True), waveform_BS.var(1, keepdim=True, unbiased=False)
            waveform_BS = (waveform_BS - mean) / (variance + 1e-7).sqrt()
        padded = nn.functional.pad(waveform_BS, (self.margin // 2, self.margin - self.margin // 2))
        return self.network(padded, output_hidden_states=True).hidden_states[self.place]


class DacFrames(FeatureSource):
    """The latents of a Descript Audio Codec (transformers) before it quantises them."""

    def __init__(self, name: str, folder: Path, layer: int | None = None) -> None:
        no_layer(name, layer)
        super().__init__(name, folder_fingerprint(folder))
        self.network = load_transformer(name, folder)
        config = self.network.config
        self.sample_rate_hz, self.width = config.sampling_rate, config.hidden_size
        self.hop = config.hop_length
        self.frame_rate_hz = self.sample_rate_hz / self.hop

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """See `FeatureSource`; the sound is filled up to whole frames."""
        padded = nn.functional.pad(waveform_BS, (0, -waveform_BS.shape[1] % self.hop))
        return self.network.encoder(padded[:, None]).transpose(1, 2)


class MuqFrames(FeatureSource):
    """MuQ, by its own package `muq` (MIT): 25 vectors a second of sound at 24 kHz."""

    def __init__(self, name: str, folder: Path, layer: int | None = None) -> None:
        super().__init__(name, folder_fingerprint(folder), layer)
        check_folder(folder, folder)
        if not (folder / "model.safetensors").is_file():
            raise MusiccmError(f"{folder}: has no model.safetensors; weights in another format are not read")
        try:
            # by name: it belongs to no extra of this package
            package = importlib.import_module("muq")
        except ImportError as error:
            raise MusiccmError("features muq: need the package muq, which is not installed: pip install muq") from error
        self.network = freeze(package.MuQ.from_pretrained(str(folder), local_files_only=True))
        self.place = -1 if layer is None else layer
        self.sample_rate_hz, self.frame_rate_hz = 24000, 25.0
        with torch.no_grad():
            self.width = self.frames(torch.zeros(1, self.sample_rate_hz)).shape[2]

    def frames(self, waveform_BS: Tensor) -> Tensor:
        """See `FeatureSource`."""
        return self.network(waveform_BS, output_hidden_states=True).hidden_states[self.place]


_OF_A_BUNDLE: dict[str, Callable[..., FeatureSource]] = {"tagger": TaggerFrames, "clap": ClapFrames}
_OF_A_FOLDER: dict[str, Callable[..., FeatureSource]] = {
    "hubert": SpeechFrames, "wav2vec2-conformer": SpeechFrames, "mert": SpeechFrames, "dac": DacFrames,
    "muq": MuqFrames,
}
#: Names of what features can come from.
SOURCES = (*_OF_A_BUNDLE, *_OF_A_FOLDER)
# name -> the class of transformers, and the model_type that its configuration must state
_CLASSES = {"hubert": ("HubertModel", "hubert"), "mert": ("HubertModel", "hubert"), "dac": ("DacModel", "dac"),
            "wav2vec2-conformer": ("Wav2Vec2ConformerModel", "wav2vec2-conformer")}


def load_source(
    name: str, where: str | Path, layer: int | None = None, non_commercial: bool = False
) -> FeatureSource:
    """Read a source of features.

    Args:
        name: One of `SOURCES`.
        where: The bundle whose `tagger` or `clap` it is (a folder, packaged name or hub id), or the local folder of any
            other network.
        layer: Which of its layers; None for its default.
        non_commercial: Whether weights may be read that are licensed for non-commercial use alone; their licence is
            then printed.

    Returns:
        The source, frozen, in eval mode.

    Raises:
        MusiccmError: There is no such source, its files are missing or need code of their own, or its licence was not
            agreed to.
    """
    if name not in SOURCES:
        raise MusiccmError(f"features: expected one of {', '.join(SOURCES)}, found {name!r}")
    if licence := NON_COMMERCIAL.get(name):
        if not non_commercial:
            raise MusiccmError(f"features {name}: its weights are licensed under {licence}, for non-commercial use "
                               "alone, and so is what is made with them; say that you agree by --non-commercial "
                               "(`non_commercial: true` in an experiment), or take hubert or dac")
        say(f"features {name}: weights under {licence}. Tokens, models and music made with them are for non-commercial "
            "use alone, and their authors must be named")
    if name in _OF_A_BUNDLE:
        parts = {"tagger": ["evaluators/tagger"], "clap": ["text_encoder", "tokenizer", "feature_extractor"]}[name]
        return freeze(_OF_A_BUNDLE[name](Bundle.from_pretrained(str(where), parts), layer))  # type: ignore[return-value]
    folder = Path(where)
    if not (folder / "config.json").is_file():
        raise MusiccmError(f"{folder}: expected a local folder with the config.json and the weights of {name}; nothing "
                           "is fetched")
    return freeze(_OF_A_FOLDER[name](name, folder, layer))  # type: ignore[return-value]


def load_transformer(name: str, folder: Path) -> Any:
    """Read a network by transformers' own class.

    Args:
        name: A key of `SOURCES`.
        folder: Where its files are.

    Returns:
        The network.

    Raises:
        MusiccmError: The files need code of their own, are of another network, or are damaged.
    """
    import transformers

    class_name, kind = _CLASSES[name]
    path = folder / "config.json"
    config = read_json(path, "a network's configuration")
    stated = config.get("model_type")
    if stated != kind or any(config.get(key) is not None for key in CODE_KEYS):
        code = ", with code of its own" if "auto_map" in config else ""
        raise MusiccmError(f"{path}: model_type is {stated!r}{code}; features {name} are read by transformers' "
                           f"{class_name} alone, from a folder that states '{kind}' and names no code. What needs "
                           "trust_remote_code is not run")
    check_folder(folder, folder)
    try:
        network, report = getattr(transformers, class_name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True)
    except Exception as error:  # a broken file shows as whatever the library tripped over
        raise MusiccmError(f"{folder}: cannot be read as {class_name} ({error})") from error
    # what hides frames in training is used nowhere else
    missing = [key for key in report.get("missing_keys", ()) if "masked_spec_embed" not in key]
    if missing:
        raise MusiccmError(f"{folder}: weights are missing: {', '.join(sorted(missing)[:3])}; they are of another "
                           "network")
    return network


def check_layer(name: str, layer: int, layers: int) -> int:
    """A layer's number from 0; a negative one counts from the end.

    Raises:
        MusiccmError: There is no such layer.
    """
    if not -layers <= layer < layers:
        raise MusiccmError(f"features {name}: layer {layer} is none of its {layers}")
    return layer % layers


def no_layer(name: str, layer: int | None) -> None:
    """Refuse a layer of a network of which only one is taken.

    Raises:
        MusiccmError: One was asked for.
    """
    if layer is not None:
        raise MusiccmError(f"features {name}: have one layer alone; leave layer out, found {layer!r}")


def folder_fingerprint(folder: Path) -> str:
    """Hash of the files that decide what a network computes, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for file in part_files(folder):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
