"""The bundle: a teacher or student and all it needs to make sound, as a directory in the diffusers layout."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musiccm.audio.mel import MelConfig
from musiccm.diffusion import prediction_type_of
from musiccm.errors import MusiccmError
from musiccm.models import attention_heads
from musiccm.models.bundle.files import (
    PARTS,
    SECOND_CLAP,
    SETTINGS_FILE,
    base_folder,
    check_part,
    has_token_encoder,
    load_part,
    load_readers,
    need,
    part_files,
    resolve_bundle,
    update_json,
)
from musiccm.models.bundle.kinds import DECODERS, BundleKind, kind_of
from musiccm.models.bundle.untrusted import check_index, check_links
from musiccm.models.plain import PLAIN, read_plainly
from musiccm.texts import read_json

# Attribute of Bundle -> folder of the layout.
ATTRIBUTES = {"clap": "text_encoder"}


class Bundle:
    """A bundle on disk; its parts are read when first used.

    Everything that a bundle hands out is frozen and in eval mode. To train a part, copy it:
    `copy.deepcopy(bundle.unet).requires_grad_(True).train()`.

    Attributes:
        path: The directory.
        index: `model_index.json`: part name to (library, class).
        settings: `musiccm.json`: what the layout has no place for (`mel`, `base`, `distillation`, `results`).
        base: The bundle that parts which this one lacks are borrowed from, as `base` of `musiccm.json` says; None for a
            bundle that is complete in itself.

    Examples:
        >>> from musiccm import Bundle
        >>> bundle = Bundle.from_pretrained("musiccm-tiny-student")
        >>> bundle.mel.sample_rate_hz, bundle.prediction_type
        (16000, 'v_prediction')
        >>> bundle.base.path.name  # where its autoencoder and its CLAP come from
        'tiny'
        >>> bundle.conditioner().text(["a calm piano melody"]).shape
        torch.Size([1, 128])
    """

    def __init__(
        self,
        path: Path,
        index: dict[str, Any],
        settings: dict[str, Any],
        dtype: torch.dtype,
        base: Bundle | None = None,
    ) -> None:
        self.path = path
        self.index = index
        self.settings = settings
        self.dtype = dtype
        self.base = base
        self.plain = False
        self._loaded: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, parts: Iterable[str] | None = None, dtype: torch.dtype = torch.float32,
        plain: bool = False,
    ) -> Bundle:
        """Open a bundle and check that the files of its parts are there; weights are read on first use.

        Args:
            path: A directory, the name of a packaged bundle (`musiccm-tiny`, `musiccm-tiny-student`) or a hub id
                (`owner/name`).
            parts: Parts to check (`unet`, `vae`, `clap`, ...); None checks all that `model_index.json` lists. A feature
                extractor is CLAP's: where the text encoder gives tokens, it is not looked for.
            dtype: Type of the weights in memory. Files in float16 are widened to the default, float32.
            plain: Read U-Net, text encoder and tokenizer without diffusers and transformers where `models/plain`
                computes them: for making music of texts alone, as they are no classes of these libraries then, and CLAP
                embeds no audio.

        Returns:
            The bundle.

        Raises:
            MusiccmError: If the directory, `model_index.json` or a part's file is missing, names code, or leads out of
                the directory.
        """
        wanted = None if parts is None else [ATTRIBUTES.get(part, part) for part in parts]
        bundle = cls._open(resolve_bundle(path, wanted), wanted, dtype, ())
        bundle.plain = plain
        return bundle

    @classmethod
    def _open(
        cls, folder: Path, wanted: list[str] | None, dtype: torch.dtype, borrowers: tuple[Path, ...]
    ) -> Bundle:
        """Open a directory, and the bundle that it borrows from; `borrowers` are those that led to this one."""
        if folder.resolve() in borrowers:
            raise MusiccmError(f"{folder / SETTINGS_FILE}: its base leads back to the bundle itself; export it anew")
        index_path, settings_path = folder / "model_index.json", folder / SETTINGS_FILE
        check_links(folder, [index_path, settings_path])
        index = read_json(index_path, "a bundle's list of parts")
        check_index(index_path, index)
        settings = read_json(settings_path, "a bundle's settings") if settings_path.is_file() else {}
        bundle = cls(folder, index, settings, dtype, cls._open_base(folder, settings, dtype, borrowers))
        listed = [name for name in index if name in PARTS]
        for name in listed if wanted is None else wanted:
            if name != "feature_extractor" or not bundle.gives_tokens:
                check_part(bundle.root_of(name), name)
        return bundle

    @classmethod
    def _open_base(
        cls, folder: Path, settings: dict[str, Any], dtype: torch.dtype, borrowers: tuple[Path, ...]
    ) -> Bundle | None:
        """Open the bundle that parts are borrowed from, and make sure that it still is the same one."""
        stated = settings.get("base")
        if stated is None:
            return None
        where = folder / SETTINGS_FILE
        if not isinstance(stated, dict):
            raise MusiccmError(f"{where}: base is {stated!r}; expected an object of path, parts and content_hash")
        path, parts, expected = (need(stated, key, where) for key in ("path", "parts", "content_hash"))
        if not isinstance(parts, list) or not all(part in PARTS for part in parts):
            raise MusiccmError(f"{where}: base.parts is {parts!r}; expected a list of {', '.join(PARTS)}")
        base = cls._open(base_folder(folder, path, where, parts), parts, dtype, (*borrowers, folder.resolve()))
        if base.content_hash(parts) != expected:
            raise MusiccmError(
                f"{folder / SETTINGS_FILE}: the parts borrowed from '{path}' are not those that this model "
                "was exported with; restore them, or export the model with its own copies"
            )
        return base

    def root_of(self, name: str) -> Path:
        """The bundle directory that a part's folder lies in: this one's, or the base's where the part is borrowed."""
        if self.base is not None and not (self.path / name).is_dir():
            return self.base.root_of(name)
        return self.path

    def part(self, name: str) -> Any:
        """A part by its folder's name, read on first use.

        Raises:
            MusiccmError: If its files are missing, damaged or do not fit together.
        """
        if name not in self._loaded:
            root = self.root_of(name)
            check_part(root, name)
            kwargs: dict[str, Any] = {"source": self.mel} if name == "evaluators/audiomae" else {}
            if name == "unet":
                kwargs = attention_heads.check_heads(
                    self.config("unet"), self.settings.get(attention_heads.SETTING), root
                )
            found = None
            if self.plain and name in PLAIN:
                found = read_plainly(root / name, name, {**self.config(name), **kwargs}, self.dtype)
            self._loaded[name] = load_part(root, name, self.dtype, **kwargs) if found is None else found
        return self._loaded[name]

    @cached_property
    def kind(self) -> BundleKind:
        """Which parts denoise, encode and condition."""
        return kind_of(self)

    @property
    def sample_rate_hz(self) -> int:
        """Rate of its sound."""
        return self.kind.sample_rate_hz(self)

    @property
    def network(self) -> nn.Module:
        """The network that denoises: the U-Net, or the dual-path network of MeLoDy's kind."""
        return self.part(self.kind.network)

    def require_unet(self, key: str, advice: str) -> None:
        """Refuse a setting that only a U-Net on the latents of a mel can follow.

        Args:
            key: The setting.
            advice: What to do about it.

        Raises:
            MusiccmError: The network is another one.
        """
        if self.kind.network != "unet":
            raise MusiccmError(f"{key}: needs a U-Net on the latents of a mel, and the network of {self.path} is "
                               f"{self.kind.network}/; {advice}")

    @property
    def unet(self) -> nn.Module:
        """The `UNet2DConditionModel`.

        Raises:
            MusiccmError: The bundle is of another kind, whatever its base has.
        """
        self.require_unet("unet", "name a bundle of that kind")
        return self.part("unet")

    @property
    def vae(self) -> nn.Module:
        """The `AutoencoderKL`; errors as `unet`."""
        self.require_unet("vae", "name a bundle of that kind")
        return self.part("vae")

    @property
    def gives_tokens(self) -> bool:
        """Whether the text encoder conditions by tokens (T5 and the like), and not by a vector as CLAP does."""
        return has_token_encoder(self.root_of("text_encoder"))

    @property
    def text_encoder(self) -> nn.Module:
        """What reads the captions: CLAP, or an encoder that gives tokens."""
        return self.part("text_encoder")

    @property
    def clap(self) -> nn.Module:
        """The whole `ClapModel`, both towers; of AudioLDM's published layout a `ClapTextModelWithProjection`.

        Raises:
            MusiccmError: The bundle's text encoder is none.
        """
        if self.gives_tokens:
            raise MusiccmError(f"{self.path}/text_encoder: is a {self.config('text_encoder')['model_type']} encoder, "
                               "which gives tokens; what is asked for needs a CLAP (docs/teachers.md)")
        return self.part("text_encoder")

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.part("tokenizer")

    @property
    def feature_extractor(self) -> Any:
        """CLAP's `ClapFeatureExtractor`, read for its numbers."""
        return self.part("feature_extractor")

    @property
    def vocoder(self) -> nn.Module:
        """The `SpeechT5HifiGan`."""
        return self.part("vocoder")

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """`scheduler/scheduler_config.json`."""
        return self.part("scheduler")

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts, as `scheduler/scheduler_config.json` states it or its class implies it."""
        return prediction_type_of(self.scheduler_config)

    @property
    def evaluators(self) -> Mapping[str, nn.Module]:
        """`evaluators["tagger"]`, `evaluators["audiomae"]`: networks that metrics and losses use, read on first use."""
        return _Evaluators(self)

    @cached_property
    def mel(self) -> MelConfig:
        """The mel front end: the vocoder's numbers (if there is one yet), `mel` of `musiccm.json`, else MusicLDM's."""
        values = {}
        if (self.root_of("vocoder") / "vocoder").is_dir():
            rate_hz, hops, n_mels = self.stated("vocoder", "sampling_rate", "upsample_rates", "model_in_dim")
            values = {"sample_rate_hz": rate_hz, "hop_length": math.prod(hops), "n_mels": n_mels}
        stated = self.settings.get("mel", {})
        unknown = sorted(set(stated) - {field.name for field in fields(MelConfig)})
        if unknown:
            raise MusiccmError(
                f"{self.path / SETTINGS_FILE}: unknown key(s) in 'mel': {', '.join(unknown)}; remove them"
            )
        for key, value in values.items():
            if stated.get(key, value) != value:
                raise MusiccmError(
                    f"{self.path / SETTINGS_FILE}: mel.{key} is {stated[key]}, but vocoder/config.json implies "
                    f"{value}; make the two agree"
                )
        return MelConfig(**{**values, **stated})

    @property
    def latent_patch(self) -> int:
        """Side of the blocks of raw latents that are one position of z: `latent_patch` of `musiccm.json`, else 1."""
        stated = self.settings.get("latent_patch", 1)
        if not isinstance(stated, int) or stated < 1:
            raise MusiccmError(f"{self.path / SETTINGS_FILE}: latent_patch is {stated!r}; expected a whole number >= 1")
        return stated

    def config(self, part: str) -> dict[str, Any]:
        """Read a part's `config.json` without its weights."""
        name = ATTRIBUTES.get(part, part)
        return read_json(self.root_of(name) / name / PARTS[name].config_file, f"the configuration of {name}")

    def stated(self, part: str, *keys: str) -> list[Any]:
        """Values of a part's `config.json`, which must state them."""
        name, config = ATTRIBUTES.get(part, part), self.config(part)
        return [need(config, key, self.root_of(name) / name / PARTS[name].config_file) for key in keys]

    def has(self, name: str) -> bool:
        """Whether a part's folder is there, here or in the base."""
        return (self.root_of(name) / name).is_dir()

    @property
    def has_fast_decoder(self) -> bool:
        """Whether there is a fast decoder of its own autoencoder's latents.

        A base may have one of another autoencoder: it counts only where the autoencoder is borrowed as well.
        """
        bundle: Bundle | None = self
        while bundle is not None:
            if (bundle.path / "decoder").is_dir():
                return True
            bundle = None if (bundle.path / self.kind.autoencoder).is_dir() else bundle.base
        return False

    @property
    def decoders(self) -> tuple[str, ...]:
        """What can make its sound, by the names that `codec` takes."""
        decoding = self.kind.decoding
        return tuple(name for name in decoding if all(map(self.has, decoding[name]))
                     and (name != "fast" or self.has_fast_decoder))

    def codec(self, decoder: str | None = None) -> nn.Module:
        """Between sound and the latents of this bundle: a `LatentCodec`, or the audio VAE of MeLoDy's kind.

        Args:
            decoder: What makes its sound: `fast`, the bundle's fast decoder; `original`, VAE decoder and vocoder;
                `none`, where only latents and mels are needed; None for the fast one where there is one, else the
                original.

        Raises:
            MusiccmError: Another name, or a fast decoder is asked for that the bundle lacks or that is not for its VAE.
        """
        if decoder not in (None, "none", *DECODERS):
            raise MusiccmError(f"decoder: expected one of {', '.join(DECODERS)}, found {decoder!r}")
        return self.kind.codec(self, decoder)

    def conditioner(self) -> nn.Module:
        """The `ClapConditioner` of this bundle; a `TextEncoderConditioner` where its text encoder gives tokens.

        Raises:
            MusiccmError: Text encoder and tokenizer do not belong together.
        """
        from musiccm.models.conditioners.clap import ClapConditioner
        from musiccm.models.conditioners.text_encoder import TextEncoderConditioner

        if self.gives_tokens:
            return TextEncoderConditioner(self.text_encoder, self.tokenizer, f"{self.path}/")
        extractor = self.feature_extractor if hasattr(self.clap, "audio_model") else None
        return ClapConditioner(self.clap, self.tokenizer, extractor, f"{self.path}/")

    def network_conditioner(self) -> nn.Module:
        """What the network is told of texts: `conditioner`, or for MeLoDy's kind tokens that are planned with it.

        Raises:
            MusiccmError: Parts are missing, or do not belong together.
        """
        return self.kind.conditioner(self)

    def second_clap(self) -> nn.Module:
        """The `ClapConditioner` of `evaluators/clap_second`, which scores and conditions nothing.

        Raises:
            MusiccmError: There is none, or its files do not belong together.
        """
        from musiccm.models.conditioners.clap import ClapConditioner

        if not self.has(SECOND_CLAP):
            raise MusiccmError(f"{self.path}: has no second CLAP (no {SECOND_CLAP}/ folder); train one by "
                               "experiments/stages/clap_second.yaml, or name another CLAP")
        clap, folder = self.part(SECOND_CLAP), self.root_of(SECOND_CLAP) / SECOND_CLAP
        return ClapConditioner(clap, *load_readers(folder), f"{folder}: ")

    def check_condition(self, unet: Mapping[str, Any] | None = None) -> None:
        """Refuse a network that does not take what it is conditioned by, before any weights are read.

        Args:
            unet: Its configuration; that of the bundle's own if not given.

        Raises:
            MusiccmError: Naming both widths.
        """
        self.kind.check_condition(self, unet)

    def latent_shape(self) -> tuple[int, int, int]:
        """The [C, T, F] that the network was trained on, from its configuration."""
        return self.kind.latent_shape(self)

    def content_hash(self, parts: Iterable[str] | None = None) -> str:
        """A hash of the files of some parts: the key under which what they computed may be cached.

        Args:
            parts: Part names; None means all listed parts.

        Returns:
            64 hexadecimal digits, equal for equal bytes wherever the bundle lies.
        """
        names = [n for n in self.index if n in PARTS] if parts is None else [ATTRIBUTES.get(p, p) for p in parts]
        digest = hashlib.sha256()
        for name in sorted(names):
            check_part(self.root_of(name), name)
            for file in part_files(self.root_of(name) / name):
                digest.update(f"{name}/{file.name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
        digest.update(json.dumps(asdict(self.mel), sort_keys=True).encode())
        if "unet" in names and attention_heads.SETTING in self.settings:
            digest.update(json.dumps(self.settings[attention_heads.SETTING]).encode())
        return digest.hexdigest()

    def denoiser_hash(self) -> str:
        """A hash of the network and its noise process, by which a student knows its teacher.

        Returns:
            As `content_hash`.
        """
        return self.content_hash([self.kind.network, "scheduler"])


class _Evaluators(Mapping[str, nn.Module]):
    """The folders under `evaluators/`, as a mapping that reads on first use."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __getitem__(self, name: str) -> nn.Module:
        return self._bundle.part(f"evaluators/{name}")

    def __iter__(self):
        return (part.split("/", 1)[1] for part in PARTS
                if part.startswith("evaluators/") and (self._bundle.root_of(part) / part).is_dir())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def save_settings(path: str | Path, **settings: Any) -> None:
    """Merge keys into a bundle's `musiccm.json`; a `MelConfig` is written as its fields."""
    update_json(
        Path(path) / SETTINGS_FILE,
        {key: asdict(value) if isinstance(value, MelConfig) else value for key, value in settings.items()},
    )
