"""Reading and writing the parts of a bundle: which class and which file each folder holds, and what can be wrong."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musiccm.diffusion import gives_tokens
from musiccm.errors import MusiccmError
from musiccm.files import naming_full_disk, write_json, write_text
from musiccm.local_models import PACKAGED, packaged_bundle
from musiccm.locks import LOCK, turn
from musiccm.models.bundle.untrusted import check_base, check_folder
from musiccm.models.denoiser import takes_scale
from musiccm.texts import read_json

SETTINGS_FILE = "musiccm.json"
#: The folder with the index of what a bundle's teacher was trained on (`musiccm.similarity.index`); it may be missing.
TRAINING_INDEX = "training_index"
#: The folder with what the training captions speak of (`musiccm.models.bundle.training_words`); it may be missing.
WORDS = "words"
#: A second CLAP, which conditions nothing: students that were tuned by the first are scored by it. Its tokenizer and
#: its feature extractor lie in the same folder.
SECOND_CLAP = "evaluators/clap_second"
#: Keys of an encoder-decoder's weights that are no part of its encoder: `text_encoder/` may be a whole T5.
BEYOND_THE_ENCODER = ("decoder.", "lm_head.")

#: What reads every text encoder but CLAP, by its configuration.
TOKEN_ENCODER = "AutoModelForTextEncoding"


@dataclass(frozen=True)
class PartKind:
    """What a folder of the layout holds: the class that reads it, its configuration and its weights (None: none).

    A bundle does without an optional part. One that is `as_it_is` has weights of the types that its stage chose, and a
    hash that others are held to: it is copied and not written anew.
    """

    library: str
    class_name: str
    config_file: str = "config.json"
    weights: str | None = None
    optional: bool = False
    as_it_is: bool = False

    def load_class(self) -> Any:
        """Import the class; heavy libraries are paid for only by those who use the part."""
        return getattr(importlib.import_module(self.library), self.class_name)


PARTS = {
    "unet": PartKind("diffusers", "UNet2DConditionModel", weights="diffusion_pytorch_model"),
    "vae": PartKind("diffusers", "AutoencoderKL", weights="diffusion_pytorch_model"),
    "text_encoder": PartKind("transformers", "ClapModel", weights="model"),
    "tokenizer": PartKind("transformers", "AutoTokenizer", config_file="tokenizer_config.json"),
    "feature_extractor": PartKind("transformers", "ClapFeatureExtractor", config_file="preprocessor_config.json"),
    "vocoder": PartKind("transformers", "SpeechT5HifiGan", weights="model"),
    "decoder": PartKind("musiccm.models.fast_decoder", "FastDecoder", weights="model", optional=True),
    "audio_vae": PartKind("musiccm.models.melody.audio_vae", "AudioVae", weights="model", optional=True),
    "scheduler": PartKind("diffusers", "DDIMScheduler", config_file="scheduler_config.json"),
    "evaluators/tagger": PartKind("musiccm.models.tagger", "Tagger", weights="model"),
    "evaluators/sections": PartKind("musiccm.models.tagger", "Tagger", weights="model", optional=True),
    "evaluators/audiomae": PartKind("musiccm.models.features", "ViTFeatures", weights="model"),
    SECOND_CLAP: PartKind("transformers", "ClapModel", weights="model", optional=True),
    "semantic_tokenizer": PartKind("musiccm.models.melody.tokenizer", "SemanticTokenizer", weights="model",
                                   optional=True, as_it_is=True),
    "semantic_lm": PartKind("musiccm.models.melody.semantic_lm", "SemanticLM", weights="model", optional=True,
                            as_it_is=True),
    "dual_path": PartKind("musiccm.models.melody.dual_path", "DualPath", weights="model", optional=True),
}


def resolve_bundle(path: str | Path, parts: Iterable[str] | None = None, here: bool = True) -> Path:
    """Find a bundle: a directory, a packaged name, or a hub id, of which only the needed files are fetched.

    Args:
        path: Any of these.
        parts: Parts whose files are needed; None for all.
        here: Whether it may be a directory at all.

    Returns:
        Its directory.

    Raises:
        MusiccmError: There is none.
    """
    if not isinstance(path, str | Path):
        raise MusiccmError(f"bundle: expected a directory, a packaged name or a hub id, found {path!r}")
    if here and Path(path).is_dir():
        return Path(path)
    name = str(path)
    if (folder := packaged_bundle(name)) is not None:
        if not folder.is_dir():
            raise MusiccmError(f"the packaged bundle '{name}' is not in this installation ({folder}); reinstall "
                               "musiccm, or build it in a clone (`make bundle`, `make bundle-tango`, `make "
                               "bundle-melody`)")
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name, parts, here)
    raise MusiccmError(f"no bundle at '{name}': expected a directory with model_index.json, one of "
                       f"{', '.join(PACKAGED)}, or a hub id such as owner/name")


def base_folder(bundle: Path, path: str, where: Path, parts: Iterable[str]) -> Path:
    """Find the bundle that another borrows parts from, by the path that `base` of its settings states.

    Args:
        bundle: The borrower's directory.
        path: `../NAME`, a packaged name or a hub id; names are not looked for in the folder that happens to be current.
        where: Where the path is stated, for messages.
        parts: What is borrowed.

    Returns:
        Its directory.

    Raises:
        MusiccmError: The path leads anywhere else, or to nothing.
    """
    check_base(where, path)
    if path.startswith("../"):
        # by the text of the path, as a bundle that is being written is not there yet
        return resolve_bundle(bundle / path if bundle.is_dir() else Path(os.path.normpath(bundle / path)), parts)
    return resolve_bundle(path, parts, here=False)


def _from_hub(name: str, parts: Iterable[str] | None, here: bool) -> Path:
    from huggingface_hub import snapshot_download

    folders = [*(PARTS if parts is None else parts), TRAINING_INDEX, WORDS]
    kinds = ("*.json", "*.txt", "*.model", "*.safetensors")
    patterns = [f"{folder}/{kind}" for folder in folders for kind in kinds]
    try:
        return Path(snapshot_download(name, allow_patterns=["model_index.json", SETTINGS_FILE, *patterns]))
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "could not be had"
        made = "" if not (here and Path(name).parent.is_dir()) else (
            f" {Path(name).parent} is a folder here: if {name} is one that a stage or `musiccm convert` writes, run "
            "that first (docs/train_a_teacher.md, docs/teachers.md).")
        raise MusiccmError(f"bundle '{name}': no such directory here, and the hub could not give it ({error}); check "
                           f"the path or the network.{made}") from error


def update_json(path: Path, entries: dict[str, Any]) -> None:
    """Merge entries into a JSON file, atomically, also where several processes do so at once."""
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with turn(path.with_name(LOCK)):
        content = read_json(path, "a JSON object") if path.is_file() else {}
        write_text(path, json.dumps({**content, **entries}, indent=2) + "\n")


def need(config: Mapping[str, Any], key: str, path: Path) -> Any:
    """A value that a configuration must state.

    Args:
        config: What was read.
        key: The key.
        path: Where it was read from.

    Returns:
        The value.

    Raises:
        MusiccmError: The key is missing.
    """
    if key not in config:
        raise MusiccmError(f"{path}: expected a key '{key}', found {', '.join(map(str, config)) or 'none'}; restore it")
    return config[key]


def check_part(bundle: Path, name: str) -> None:
    """Check that a part's folder, configuration and weights are there, and name nothing that a stranger could run.

    Raises:
        MusiccmError: Naming the first thing that is missing, or that names code or files elsewhere.
    """
    if name not in PARTS:
        raise MusiccmError(f"{bundle}: '{name}' is no part of a bundle; parts are {', '.join(PARTS)}")
    kind, folder = PARTS[name], bundle / name
    if not folder.is_dir():
        if name == "feature_extractor" and has_text_tower_alone(bundle):
            raise MusiccmError(f"{folder}: is missing, and text_encoder holds CLAP's text tower alone, as AudioLDM's "
                               "published layout does; add the other by `musiccm convert --bundle FOLDER --clap FILE`")
        if name == "feature_extractor" and has_token_encoder(bundle):
            raise MusiccmError(f"{folder}: is missing, as {bundle / 'text_encoder'} is no CLAP and embeds no audio; "
                               "name a bundle with a CLAP for what compares audio with audio or text")
        raise MusiccmError(f"{folder}: this part of the bundle is missing; expected a folder with {kind.config_file}")
    if not (folder / kind.config_file).is_file():
        raise MusiccmError(f"{folder / kind.config_file}: not found; a {kind.class_name} needs it")
    check_folder(bundle, folder)
    if kind.weights is None:
        return
    weights = folder / f"{kind.weights}.safetensors"
    if weights.is_file() or weights.with_name(weights.name + ".index.json").is_file():
        return
    pickled = [file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".ckpt", ".pth"}]
    hint = f"; found {', '.join(pickled)}, which is not safetensors: save the part with safe_serialization=True" if (
        pickled) else "; copy the part's weights there"
    raise MusiccmError(f"{weights}: not found{hint}")


def has_text_tower_alone(bundle: Path) -> bool:
    """Whether `text_encoder/` is a `ClapTextModelWithProjection`, which AudioLDM's published layout has for CLAP."""
    config = bundle / "text_encoder" / PARTS["text_encoder"].config_file
    return config.is_file() and read_json(config, "CLAP's configuration").get("model_type") == "clap_text_model"


def has_token_encoder(bundle: Path) -> bool:
    """Whether `text_encoder/` is there and gives tokens (T5 and the like), and not a vector as CLAP does."""
    config = bundle / "text_encoder" / PARTS["text_encoder"].config_file
    return config.is_file() and gives_tokens(read_json(config, "the text encoder's configuration"))


def part_files(folder: Path) -> list[Path]:
    """The files of a part that decide what it computes, in a fixed order."""
    return sorted(f for f in folder.iterdir() if f.suffix in {".json", ".safetensors", ".txt", ".model"})


def load_part(bundle: Path, name: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """Read one part: a frozen module in eval mode, a tokenizer or extractor, or the scheduler's dict.

    Args:
        bundle: The bundle's directory.
        name: A key of `PARTS`.
        dtype: Type of the weights in memory.
        **kwargs: Passed to the part's own `from_pretrained`.

    Returns:
        The part.

    Raises:
        MusiccmError: If the weights are unreadable, or do not fit the configuration.
    """
    kind, folder = PARTS[name], bundle / name
    if name == "scheduler":
        return read_json(folder / kind.config_file, "the noise schedule")
    if name == "text_encoder":
        kind = replace(kind, class_name=_text_encoder_class(bundle))
    loader = _unet_class(bundle) if name == "unet" else kind.load_class()
    try:
        with contextlib.nullcontext() if kind.library.startswith("musiccm.") else _quiet():
            module, report = _read(loader, kind, folder, dtype, kwargs)
    except MusiccmError:
        raise
    except Exception as error:  # a broken file shows as whatever the library tripped over
        raise MusiccmError(f"{folder}: cannot be read as {kind.class_name} ({error}); the files are damaged or "
                           "of another kind") from error
    if kind.class_name == TOKEN_ENCODER:
        stray = report.get("unexpected_keys", ())
        report = {**report, "unexpected_keys": [key for key in stray if not key.startswith(BEYOND_THE_ENCODER)]}
    _check_report(folder, kind, report)
    return freeze(module) if isinstance(module, nn.Module) else module


def _unet_class(bundle: Path) -> Any:
    """The class that reads `unet/`: diffusers' own, or ours where the U-Net is told its guidance scale."""
    kind = PARTS["unet"]
    if not takes_scale(read_json(bundle / "unet" / kind.config_file, "the configuration of unet")):
        return kind.load_class()
    from musiccm.models.guidance_branch import GuidedUNet2DConditionModel

    return GuidedUNet2DConditionModel


def _text_encoder_class(bundle: Path) -> str:
    """The class of transformers that reads `text_encoder/`, by what its configuration says that it is.

    Raises:
        MusiccmError: It is no text encoder that transformers knows.
    """
    if has_text_tower_alone(bundle):
        return "ClapTextModelWithProjection"
    if not has_token_encoder(bundle):
        return PARTS["text_encoder"].class_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as known

    path = bundle / "text_encoder" / PARTS["text_encoder"].config_file
    stated = read_json(path, "the text encoder's configuration")["model_type"]
    if not isinstance(stated, str) or stated not in known:
        raise MusiccmError(f"{path}: model_type is {stated!r}; expected CLAP, or a text encoder that transformers' "
                           f"{TOKEN_ENCODER} reads: t5, umt5, bert, roberta, ...")
    return TOKEN_ENCODER


def token_width(bundle: Path) -> int:
    """The width of the tokens that `text_encoder/` gives, from its configuration alone.

    Raises:
        MusiccmError: The configuration is no text encoder's.
    """
    from transformers import AutoConfig

    check_part(bundle, "text_encoder")
    _text_encoder_class(bundle)
    folder = bundle / "text_encoder"
    try:
        return int(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).hidden_size)
    except Exception as error:  # whatever the library tripped over in a broken file
        raise MusiccmError(f"{folder / PARTS['text_encoder'].config_file}: not a text encoder's configuration "
                           f"({error}); restore it") from error


def _read(
    loader: Any, kind: PartKind, folder: Path, dtype: torch.dtype, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Read by the library's own loader, and get its report on keys that did not fit."""
    # None of a part's code is ever run; left open, transformers would ask whoever sits at the terminal.
    if kind.weights is None:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False), {}
    if kind.library == "diffusers":
        return loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=True, low_cpu_mem_usage=False, **kwargs,
        )
    if kind.library == "transformers":
        return loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=dtype,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )
    return loader.from_pretrained(folder, **kwargs).to(dtype), {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of the user's terminal: the parts of a small bundle load in an instant."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_report(folder: Path, kind: PartKind, report: dict[str, Any]) -> None:
    """Refuse weights that the libraries would only have warned about."""
    problems = {
        "of another size than the configuration says": [k[0] if isinstance(k, tuple) else k
                                                        for k in report.get("mismatched_keys", ())],
        "missing": report.get("missing_keys", ()),
        "unknown": report.get("unexpected_keys", ()),
    }
    for what, keys in problems.items():
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise MusiccmError(f"{folder}/{kind.weights}.safetensors: weights {what}: {shown}; config.json and the "
                               "weights do not belong together")


def freeze(module: nn.Module) -> nn.Module:
    """Put a module in eval mode and stop gradients to its weights (not through it)."""
    return module.eval().requires_grad_(False)


def save_part(bundle: str | Path, name: str, part: Any, dtype: torch.dtype | None = None) -> Path:
    """Write one part of a bundle and list it in `model_index.json`.

    Args:
        bundle: The bundle's directory; made where missing.
        name: A key of `PARTS`: `unet`, `vae`, `text_encoder` (a whole ClapModel, or an encoder that gives tokens, such
            as a T5EncoderModel), `evaluators/tagger`, ...
        part: A module, tokenizer or extractor with `save_pretrained`; for `scheduler`, a scheduler or its dict.
        dtype: Type of the floating-point weights on disk; None leaves them as they are. The part itself is not altered.

    Returns:
        The part's folder.
    """
    bundle = Path(bundle)
    if name not in PARTS:
        raise MusiccmError(f"'{name}' is no part of a bundle; parts are {', '.join(PARTS)}")
    folder = bundle / name
    folder.mkdir(parents=True, exist_ok=True)
    kind = PARTS[name]
    class_name = kind.class_name
    if name == "scheduler" and isinstance(part, dict):
        class_name = part.get("_class_name", class_name)
        write_json(folder / kind.config_file, {"_class_name": class_name, **part})
    else:
        class_name = type(part).__name__
        if dtype is not None and isinstance(part, nn.Module):
            # diffusers' own `to` warns of modules to be kept in float32 even where there are none.
            part = nn.Module.to(copy.deepcopy(part), dtype)
        with _quiet(), naming_full_disk(folder):
            part.save_pretrained(folder)
        _forget_origin(folder / kind.config_file)
    # diffusers' own loader would look for a class of theirs, and for folders of its own layout alone
    if not kind.library.startswith("musiccm.") and "/" not in name:
        import diffusers

        update_json(bundle / "model_index.json", {
            "_class_name": pipeline_class(bundle), "_diffusers_version": diffusers.__version__,
            name: [kind.library, class_name],
        })
    return folder


def save_second_clap(
    bundle: str | Path, clap: nn.Module, tokenizer: Any, feature_extractor: Any, dtype: torch.dtype | None = None
) -> Path:
    """Write `evaluators/clap_second/`: a CLAP side by side with what it reads texts and sounds with.

    Args:
        bundle: The bundle's directory; made where missing.
        clap: A `ClapModel`.
        tokenizer: Its tokenizer.
        feature_extractor: Its `ClapFeatureExtractor`.
        dtype: See `save_part`.

    Returns:
        The part's folder.
    """
    folder = save_part(bundle, SECOND_CLAP, clap, dtype)
    with _quiet(), naming_full_disk(folder):
        for part in (tokenizer, feature_extractor):
            part.save_pretrained(folder)
    return folder


def load_readers(folder: Path) -> tuple[Any, Any]:
    """What the CLAP of a checked folder reads texts and sounds with.

    Args:
        folder: The folder, with all of a CLAP's files side by side.

    Returns:
        Tokenizer and feature extractor.

    Raises:
        MusiccmError: One of them is missing or cannot be read.
    """
    found = []
    for name in ("tokenizer", "feature_extractor"):
        kind = PARTS[name]
        if not (folder / kind.config_file).is_file():
            raise MusiccmError(f"{folder / kind.config_file}: not found; this CLAP's {name} needs it")
        try:
            found.append(_read(kind.load_class(), kind, folder, torch.float32, {})[0])
        except Exception as error:  # a broken file shows as whatever the library tripped over
            raise MusiccmError(f"{folder}: its {name} cannot be read ({error}); the files are damaged or of another "
                               "kind") from error
    return found[0], found[1]


def pipeline_class(bundle: Path) -> str:
    """The pipeline of diffusers that `model_index.json` names; none of theirs makes music by tokens."""
    own = has_token_encoder(bundle) or any((bundle / part).is_dir() for part in ("audio_vae", "dual_path"))
    return "DiffusionPipeline" if own else "MusicLDMPipeline"


def _forget_origin(config: Path) -> None:
    """Drop the path that a part was read from: the machine that wrote a bundle is nobody's business."""
    if not config.is_file():
        return
    content = read_json(config, "a part's configuration")
    if content.pop("_name_or_path", None) is not None:
        write_text(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
