"""`words/` of a bundle: what its training captions speak of, and how far a prompt is from all of them.

`words.json` has the counts, some of the captions and the limit; `captions.safetensors` what the bundle's text encoder
makes of these captions, in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from musiccm.diffusion import pool_condition
from musiccm.errors import MusiccmError
from musiccm.files import write_atomically, write_json
from musiccm.models.bundle.bundle import Bundle
from musiccm.models.bundle.caption_words import (
    COLOURING,
    NAMING,
    bpm_range,
    content_words,
    count_phrases,
    count_words,
    words_of,
)
from musiccm.models.bundle.files import WORDS
from musiccm.models.bundle.untrusted import check_links
from musiccm.texts import read_json, short

SCHEMA = 1
WORDS_FILE, EMBEDDINGS_FILE = "words.json", "captions.safetensors"
#: Captions that are kept with their embeddings; content words that are kept with their counts, and of these the ones
#: of a group that are listed.
CAPTIONS, VOCABULARY, LISTED = 512, 20_000, 500
#: The limit of the distance: so many of held-out captions are nearer to some training caption.
QUANTILE = 0.995
#: A prompt of whose content words so many are in no training caption is unfamiliar, however near its embedding.
UNKNOWN_SHARE = 0.5
#: What a message lists of unknown words.
LISTED_UNKNOWN = 5
_NAMING = words_of(NAMING)
_COLOURING = words_of(COLOURING) - _NAMING
#: Captions that are named for an unfamiliar prompt.
NAMED = 3
#: Captions by which it is checked that the embeddings are of the bundle's text encoder, and how alike they must be:
#: weights in half precision change a cosine by far less.
PROBES, ALIKE = 3, 0.99


@dataclass(frozen=True)
class Unfamiliar:
    """A prompt that is unlike all that a model's training captions say.

    Args:
        prompt: The prompt.
        distance: One less the cosine to the nearest training caption that is kept.
        limit: The distance beyond which a prompt is unfamiliar by its embedding.
        unknown: Its content words that no training caption has.
        nearest: The captions that it is nearest to for the model, the nearest first.
    """

    prompt: str
    distance: float
    limit: float
    unknown: tuple[str, ...]
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        why = f"no training caption says {_listed(self.unknown)}" if self.unknown else (
            f"it is further from all training captions ({self.distance:.2f}) than held-out ones are ({self.limit:.2f})")
        near = "; ".join(f"'{caption}'" for caption in self.nearest)
        return f"the prompt {short(self.prompt)!r} is unfamiliar to the model: {why}. It is nearest to {near}"


def _listed(words: Sequence[str]) -> str:
    quoted = [repr(short(word)) for word in words]
    if len(quoted) > LISTED_UNKNOWN:
        quoted = [*quoted[: LISTED_UNKNOWN - 1], f"{len(quoted) - LISTED_UNKNOWN + 1} other words of it"]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


class TrainingWords:
    """The words of a bundle, read and checked.

    Args:
        folder: The folder `words/`.
        about: `words.json`.
        embedding_ND: Unit vectors of its captions.

    Attributes:
        about: `clips`, `captions` (how many), `groups` (`{group: {phrase: captions}}`), `words`, `bpm`, `threshold`.
        examples: Captions that are kept.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], embedding_ND: Tensor) -> None:
        self.folder, self.about, self.embedding_ND = folder, about, embedding_ND
        self.examples: list[str] = list(about["examples"])
        self.limit = float(about["threshold"])
        self._known = frozenset(about["words"])

    @classmethod
    def of(cls, bundle: Bundle) -> TrainingWords | None:
        """The words of a bundle, or of the one that it borrows its text encoder from.

        Args:
            bundle: The bundle.

        Returns:
            The words; None where there are none.

        Raises:
            MusiccmError: A file is missing, damaged, or leads out of the bundle.
        """
        folder = words_folder(bundle)
        if folder is None:
            return None
        path, weights = folder / WORDS_FILE, folder / EMBEDDINGS_FILE
        check_links(folder.parent, [folder, path, weights])
        about = read_json(path, "what a bundle's training captions speak of")
        _check_about(path, about)
        try:
            embedding_ND = load_file(weights)["embedding"].float()
        except (OSError, SafetensorError, KeyError) as error:
            raise MusiccmError(f"{weights}: cannot be read ({error}); {_anew(folder)}") from None
        if embedding_ND.ndim != 2 or len(embedding_ND) != len(about["examples"]) or \
                not bool(torch.isfinite(embedding_ND).all()):
            raise MusiccmError(f"{weights}: expected a finite row for each of the {len(about['examples'])} captions of "
                               f"{path.name}, found the shape {list(embedding_ND.shape)}; {_anew(folder)}")
        return cls(folder, about, embedding_ND)

    def check(self, conditioner: nn.Module) -> None:
        """Make sure that the embeddings are of a text encoder.

        Args:
            conditioner: The bundle's.

        Raises:
            MusiccmError: They are another's.
        """
        some_KD, kept_KD = embedded(conditioner, self.examples[:PROBES]), self.embedding_ND[:PROBES]
        if some_KD.shape != kept_KD.shape or float((some_KD * kept_KD).sum(1).min()) < ALIKE:
            raise MusiccmError(f"{self.folder / EMBEDDINGS_FILE}: the captions were embedded by another text encoder "
                               f"than the bundle's; {_anew(self.folder)}")

    def unknown(self, prompt: str) -> list[str]:
        """Content words of a prompt that no training caption has."""
        return [word for word in content_words(prompt) if word not in self._known]

    def unfamiliar(self, conditioner: nn.Module, prompts: Sequence[str]) -> list[Unfamiliar | None]:
        """Which prompts are unlike all training captions.

        A prompt is unfamiliar where an instrument, a kind of drums or a genre that it names is in no training caption,
        where at least half of its content words are in none (moods beside known words do not count), or where its
        embedding is further from every caption that is kept than `QUANTILE` of held-out captions are.

        Args:
            conditioner: The bundle's.
            prompts: Texts.

        Returns:
            For each prompt None, or what is wrong with it.

        Raises:
            MusiccmError: The prompts are no texts.
        """
        if not prompts:
            return []
        cosine_BN = embedded(conditioner, prompts) @ self.embedding_ND.T
        found: list[Unfamiliar | None] = []
        for prompt, cosine_N in zip(prompts, cosine_BN, strict=True):
            top = cosine_N.topk(min(NAMED, len(self.examples)))
            distance, unknown = 1 - float(top.values[0]), self.unknown(prompt)
            found.append(None if distance <= self.limit and not self._strange(prompt, unknown) else Unfamiliar(
                prompt, distance, self.limit, tuple(unknown), tuple(self.examples[int(i)] for i in top.indices)))
        return found

    def _strange(self, prompt: str, unknown: Sequence[str]) -> bool:
        if not unknown or _NAMING.intersection(unknown):
            return bool(unknown)
        words = content_words(prompt)
        if len(unknown) < len(words):  # something is known, of which a mood says how it is to be
            unknown = [word for word in unknown if word not in _COLOURING]
        return bool(unknown) and len(unknown) >= UNKNOWN_SHARE * len(words)


def words_folder(bundle: Bundle) -> Path | None:
    """Where the words of a bundle lie; those of its base are of use only where the text encoder is the base's too."""
    found: Bundle | None = bundle
    while found is not None:
        if (found.path / WORDS).is_dir():
            return found.path / WORDS
        found = None if (found.path / "text_encoder").is_dir() else found.base
    return None


def embedded(conditioner: nn.Module, texts: Sequence[str]) -> Tensor:
    """How a conditioner reads texts, one vector of unit length a text; of tokens their mean.

    Args:
        conditioner: A bundle's.
        texts: Texts.

    Returns:
        [B, D] on the CPU, float32.
    """
    with torch.inference_mode():
        rows = [pool_condition(conditioner.reader.prompts([text], whole=False))  # type: ignore[operator,union-attr]
                for text in texts]
    return nn.functional.normalize(torch.cat(rows).float().cpu(), dim=-1)


def write_words(
    folder: str | Path, bundle: Bundle, captions: Sequence[Sequence[str]], held_out: Sequence[str],
    kept: int = CAPTIONS,
) -> dict[str, Any]:
    """Count the words of training captions, embed some of these, and measure the limit on held-out ones.

    Args:
        folder: The bundle that gets `words/`.
        bundle: Whose text encoder embeds; the same one, or what it will be written from.
        captions: Of each training clip.
        held_out: Captions of clips that nothing was trained on.
        kept: Captions to keep with their embeddings.

    Returns:
        `words.json`.

    Raises:
        MusiccmError: There are too few captions, or the files cannot be written.
    """
    all_captions = [caption for of_clip in captions for caption in of_clip]
    distinct = list(dict.fromkeys(all_captions))
    if kept < NAMED or len(distinct) < NAMED or len(held_out) < 2:
        raise MusiccmError(f"words: expected at least {NAMED} different captions to keep and 2 held-out ones, found "
                           f"{min(kept, len(distinct))} and {len(held_out)}")
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [distinct[place] for place in order[:kept]]
    conditioner = bundle.conditioner()
    embedding_ND = embedded(conditioner, examples).half()
    distance_U = 1 - (embedded(conditioner, held_out) @ embedding_ND.float().T).max(dim=1).values
    about = {
        "schema": SCHEMA, "clips": len(captions), "captions": len(all_captions), "bpm": bpm_range(all_captions),
        "groups": {group: dict(counter.most_common(LISTED))
                   for group, counter in count_phrases(all_captions).items()},
        "words": dict(count_words(all_captions).most_common(VOCABULARY)),
        "threshold": round(float(torch.quantile(distance_U, QUANTILE)), 4),
        "measured_on": {"held_out": len(held_out), "quantile": QUANTILE,
                        "median": round(float(distance_U.median()), 4)},
        "examples": examples,
    }
    where = Path(folder) / WORDS
    where.mkdir(parents=True, exist_ok=True)
    write_atomically(where / EMBEDDINGS_FILE, lambda path: save_file({"embedding": embedding_ND}, path))
    write_json(where / WORDS_FILE, about)
    return about


def _anew(folder: Path) -> str:
    return f"make the folder anew (musiccm pack words --to {folder.parent} --config EXPERIMENT), or remove it"


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse what is no description of captions; it may be a stranger's."""
    def counts(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(count, int) for count in value.values())

    def texts(value: Any) -> bool:
        return isinstance(value, list) and len(value) >= NAMED and all(isinstance(text, str) for text in value)

    groups, bpm = about.get("groups"), about.get("bpm")
    for key, sound in (
        ("schema", about.get("schema") == SCHEMA),
        ("clips", isinstance(about.get("clips"), int)), ("captions", isinstance(about.get("captions"), int)),
        ("groups", isinstance(groups, dict) and all(counts(value) for value in groups.values())),
        ("words", counts(about.get("words"))), ("examples", texts(about.get("examples"))),
        ("threshold", isinstance(about.get("threshold"), int | float)),
        ("bpm", bpm is None or (isinstance(bpm, list) and len(bpm) == 3 and all(isinstance(n, int) for n in bpm))),
    ):
        if not sound:
            shown = repr(about.get(key))[:60]
            raise MusiccmError(f"{path}: {key} is {shown}, which this version does not read; {_anew(path.parent)}")
