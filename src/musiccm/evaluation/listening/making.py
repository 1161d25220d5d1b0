"""From folders of clips to a blind page, and apart from it the key that says which sound is whose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musiccm import __version__
from musiccm.audio import write_audio
from musiccm.data.audio_folder import AudioFolder, read_audio_folder
from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.design import KINDS, QUESTIONS, SCALE, Controls, Trial, designed
from musiccm.evaluation.listening.page import write_page
from musiccm.evaluation.listening.stimuli import (
    LEAST_CLIP_S,
    Item,
    Level,
    Sound,
    common_lufs,
    common_rate_hz,
    measured,
    paired_items,
    rendered,
)
from musiccm.files import replacing_folder, write_json
from musiccm.progress import Progress
from musiccm.texts import escaped

KEY_FORMAT, VERSION = "musiccm-listening-key", 1
#: Of every sound, before a question can be answered; all but a little of a shorter one.
LEAST_HEARD_S, HEARD_SHARE = 5.0, 0.9
REFERENCE = "reference"
#: What the key's folder may hold to be replaced.
OWN_NAMES = {"page", "key.json"}


@dataclass(frozen=True)
class Settings:
    """How a listening test is made.

    Args:
        kind: `preference` or `rating`.
        seed: Decides names, orders and draws.
        clips: At most so many items, drawn by the seed; None takes all.
        seconds: At most so much from the start of each clip; None takes what the shortest of an item has.
        per_listener: Items that each listener gets; None gives all.
        form: Format of the sounds.
        title: Of the page.
        collect: Where answers are sent; None leaves a download alone.
        controls: Pages to know the listeners by.
    """

    kind: str = "preference"
    seed: int = 0
    clips: int | None = None
    seconds: float | None = None
    per_listener: int | None = None
    form: str = "flac"
    title: str = "Listening test"
    collect: str | None = None
    controls: Controls = field(default_factory=Controls)


def make_listening_test(
    out: Path, folders: Mapping[str, Path], captions: Mapping[str, str] | None, captions_from: str,
    settings: Settings, replace: bool = False, progress: bool = True,
) -> dict[str, Any]:
    """Write `out/page/` for listeners, and `out/key.json`.

    Args:
        out: The folder to make.
        folders: Of each system; one called `reference` holds real clips, hidden among the others.
        captions: By clip id; None where listeners see no text.
        captions_from: Where the captions come from, for messages.
        settings: How it is made.
        replace: Whether a test that is there may be replaced.
        progress: Whether to show how far it is.

    Returns:
        The key.

    Raises:
        MusiccmError: Folders, captions or settings that make no test, or a folder that may not be replaced.
    """
    _check(settings, folders)
    _check_place(out, folders.values(), replace)
    scanned = {name: read_audio_folder(path, LEAST_CLIP_S, progress=progress) for name, path in folders.items()}
    items, unpaired = paired_items(scanned, captions, captions_from, settings.seconds)
    generator = np.random.default_rng([settings.seed, 1])
    if settings.clips is not None and settings.clips < len(items):
        items = [items[place] for place in sorted(generator.permutation(len(items))[: settings.clips])]
    of = {item.id: item for item in items}
    rate_hz = common_rate_hz(scanned.values())
    trials = designed(settings.kind, list(folders), items, settings.controls, generator, captions is not None,
                      REFERENCE if REFERENCE in folders else None)
    sounds = sorted({sound for trial in trials for sound in trial.sounds},
                    key=lambda sound: (sound.item, sound.system, sound.form, sound.copy))
    levels = _levels(sounds, of, rate_hz, settings.seed, progress)
    lufs = common_lufs(list(levels.values()))
    names = _names(sounds, settings)
    page = _page(trials, of, names, settings, generator)
    key = {
        "format": KEY_FORMAT, "version": VERSION, "test": page["test"], "kind": settings.kind, "musiccm": __version__,
        "systems": list(folders), "folders": {name: escaped(path) for name, path in folders.items()},
        "questions": sorted({ask for trial in trials for ask in trial.ask}), "scale": list(SCALE),
        "settings": asdict(settings), "sample_rate_hz": rate_hz, "lufs": lufs,
        "files": {names[sound]: asdict(sound) for sound in sounds},
        "trials": {named["id"]: {"role": trial.role, "item": trial.item, "files": named["files"], "ask": named["ask"]}
                   for trial, named in zip(trials, page["trials"], strict=True)},
        "items": len(items), "unpaired": unpaired,
        "left_out": {name: [vars(bad) for bad in folder.left_out] for name, folder in scanned.items()},
        "notes": _notes(scanned, unpaired, lufs, levels),
    }
    page["trials"].sort(key=lambda trial: trial["id"])  # which are numbered in the random order of the design
    with replacing_folder(out, replace) as staging:
        (staging / "page" / "sounds").mkdir(parents=True)
        order = [sounds[place] for place in generator.permutation(len(sounds))]  # times of files tell nothing
        with Progress(len(sounds), "writing sounds", "file", progress) as bar:
            for sound in order:
                waveform_S = rendered(of[sound.item], sound, rate_hz, _noise_seed(settings.seed, sound))
                gain = 10 ** ((lufs - levels[sound].lufs) / 20)
                write_audio(staging / "page" / "sounds" / names[sound], waveform_S * gain, rate_hz)
                bar.update()
        write_page(staging / "page", page)
        write_json(staging / "key.json", key)
    return key


def _check(settings: Settings, folders: Mapping[str, Path]) -> None:
    if settings.kind not in KINDS:
        raise MusiccmError(f"kind: expected one of {', '.join(KINDS)}, found {settings.kind!r}")
    systems = [name for name in folders if name != REFERENCE]
    least = 2 if settings.kind == "preference" else 1
    if len(systems) < least and len(folders) < 2:
        raise MusiccmError(f"system: expected at least {'two folders' if least == 2 else 'one folder'} to compare, "
                           f"found {len(folders)}")
    for name, value in (("clips", settings.clips), ("per_listener", settings.per_listener)):
        if value is not None and value < 1:
            raise MusiccmError(f"{name}: expected a whole number from 1 on, found {value}")
    if settings.seconds is not None and not LEAST_CLIP_S <= settings.seconds < float("inf"):
        raise MusiccmError(f"seconds: expected a number from {LEAST_CLIP_S:g} on, found {settings.seconds}")
    if settings.seed < 0:
        raise MusiccmError(f"seed: expected a whole number from 0 on, found {settings.seed}")
    if settings.collect is not None:
        rest = settings.collect.removeprefix("https://").removeprefix("http://")
        # it becomes a part of the page's security policy, where spaces, quotes and semicolons would say more
        if rest == settings.collect or not rest or not set(rest).isdisjoint("\"' ;,<>\t\n"):
            raise MusiccmError(f"collect: expected an address such as https://host/answers, found {settings.collect!r}")


def _check_place(out: Path, folders: Iterable[Path], replace: bool) -> None:
    if out.exists() and not out.is_dir():
        raise MusiccmError(f"{out}: expected a folder, found a file")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and not replace:
        raise MusiccmError(f"{out}: is not empty, and is not overwritten; choose another --out, or add --force to make "
                           "the test anew, to which answers that were given before do not belong")
    if others := sorted(found - OWN_NAMES):
        raise MusiccmError(f"{out}: holds more than a listening test, first {escaped(others[0])}, and is not replaced; "
                           "choose another --out")
    for folder in folders:
        if out.resolve() == folder.resolve() or out.resolve() in folder.resolve().parents:
            raise MusiccmError(f"{out}: the clips of {folder} lie in it; choose another --out")


def _levels(
    sounds: Sequence[Sound], of: Mapping[str, Item], rate_hz: int, seed: int, progress: bool
) -> dict[Sound, Level]:
    levels: dict[Sound, Level] = {}
    with Progress(len(sounds), "measuring loudness", "file", progress) as bar:
        for sound in sounds:
            found = measured(rendered(of[sound.item], sound, rate_hz, _noise_seed(seed, sound)), rate_hz)
            if found is None:
                item = of[sound.item]
                raise MusiccmError(f"{item.files[sound.system]}: the first {item.duration_s:.2f} s are near silence, "
                                   "and cannot be brought to the loudness of the others; take the clip away")
            levels[sound] = found
            bar.update()
    return levels


def _noise_seed(seed: int, sound: Sound) -> int:
    """Of one clip, whatever else is in the test."""
    named = f"{seed}/{sound.system}/{sound.item}".encode(errors="replace")
    return int.from_bytes(hashlib.sha256(named).digest()[:4], "big")


def _names(sounds: Sequence[Sound], settings: Settings) -> dict[Sound, str]:
    """Names that tell nothing: draws that do not depend on whose sound it is."""
    drawn = np.random.default_rng([settings.seed, 2]).permutation(36**4)[: len(sounds)]
    return {sound: f"{np.base_repr(int(number), 36).lower():0>4}.{settings.form}"
            for sound, number in zip(sounds, drawn, strict=True)}


def _page(
    trials: Sequence[Trial], of: Mapping[str, Item], names: Mapping[Sound, str], settings: Settings,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """What the page's script reads."""
    groups = {name: int(number) for name, number in zip(of, generator.permutation(len(of)), strict=True)}
    shortest_s = min(of[trial.item].duration_s for trial in trials)
    listed = []
    for number, trial in enumerate(trials):
        files = [names[sound] for sound in trial.sounds]
        listed.append({"id": f"t{number + 1:05}", "group": groups[trial.item], "always": trial.always,
                       "caption": of[trial.item].caption, "ask": list(trial.ask),
                       "files": [files[place] for place in generator.permutation(len(files))]})
    content: dict[str, Any] = {
        "title": settings.title, "scale": list(SCALE), "collect": settings.collect,
        "questions": {name: QUESTIONS[name] for name in sorted({ask for trial in trials for ask in trial.ask})},
        "per_listener": len(of) if settings.per_listener is None else min(settings.per_listener, len(of)),
        "least_s": round(min(LEAST_HEARD_S, HEARD_SHARE * shortest_s), 3), "trials": listed,
    }
    digest = hashlib.sha256(json.dumps([settings.seed, content], sort_keys=True).encode(errors="backslashreplace"))
    return {"test": digest.hexdigest()[:16], **content}


def _notes(
    scanned: Mapping[str, AudioFolder], unpaired: Mapping[str, list[str]], lufs: float, levels: Mapping[Sound, Level]
) -> list[str]:
    notes = []
    for name, folder in scanned.items():
        if folder.left_out:
            notes.append(f"{name}: {folder}; a system that fails on some texts sounds better without them")
        if unpaired[name]:
            notes.append(f"{name}: {len(unpaired[name])} clips are left out, which another system lacks, first "
                         f"{unpaired[name][0]}")
    if len({tuple(folder.rates_hz) for folder in scanned.values()}) > 1:
        rates = "; ".join(f"{name} {', '.join(map(str, folder.rates_hz))} Hz" for name, folder in scanned.items())
        notes.append(f"the sampling rates differ, which can be heard: {rates}")
    loudest = min(levels, key=lambda sound: levels[sound].highest_lufs)
    if lufs < -23.0:
        notes.append(f"all sounds are at {lufs:.1f} LUFS, which is quiet: the peaks of {loudest.item} of "
                     f"{loudest.system} allow no more")
    return notes
