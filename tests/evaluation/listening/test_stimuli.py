"""Degraded copies, the one loudness of a test, and pages that compare what they should."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import welch

from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.degraded import degraded
from musiccm.evaluation.listening.design import Controls, designed
from musiccm.evaluation.listening.stimuli import Item, Level, Sound, common_lufs


def test_what_the_degraded_forms_take_away_and_add() -> None:
    music_S = torch.randn(64_000, generator=torch.Generator().manual_seed(1)) * 0.1
    frequencies, power = welch(degraded(music_S, 16_000, "lowpass", 0).numpy(), 16_000)
    before = welch(music_S.numpy(), 16_000)[1]
    assert np.all(power[frequencies > 4500] < 1e-4 * before[frequencies > 4500])
    assert power[frequencies < 3000] == pytest.approx(before[frequencies < 3000], rel=0.05)
    added_S = degraded(music_S, 16_000, "noise", 3) - music_S
    assert float(added_S.square().mean() / music_S.square().mean()) == pytest.approx(1.0, rel=0.03)
    assert torch.equal(degraded(music_S, 16_000, "noise", 3) - music_S, added_S)
    assert degraded(music_S, 16_000, "plain", 3) is music_S
    with pytest.raises(MusiccmError, match="take noise"):
        degraded(music_S, 8000, "lowpass", 0)


def test_the_loudness_of_all_is_what_the_highest_peaks_allow() -> None:
    assert common_lufs([Level(-30.0, -14.0), Level(-10.0, -0.5)]) == -18.0
    assert common_lufs([Level(-30.0, -4.0), Level(-20.0, -6.0)]) == -27.0


@pytest.fixture
def items() -> list[Item]:
    return [Item(f"c{n}", "words", 2.0, {name: Path(name) for name in "xyz"}) for n in range(6)]


def test_a_preference_test_has_every_pair_once_and_its_controls(items: list[Item]) -> None:
    controls = Controls(anchors=3, checks=2, equal=2)
    trials = designed("preference", ["x", "y", "z"], items, controls, np.random.default_rng(0), True)
    pairs = [trial for trial in trials if trial.role == "pair"]
    assert len(pairs) == len({frozenset(trial.sounds) for trial in pairs}) == 6 * 3
    assert {frozenset(sound.system for sound in trial.sounds) for trial in pairs} == set(map(
        frozenset, combinations("xyz", 2)))
    assert all(trial.ask == ("prefer", "text") and len({sound.item for sound in trial.sounds}) == 1 for trial in pairs)
    of = {role: [trial for trial in trials if trial.role == role] for role in ("anchor", "same", "check")}
    assert {role: len(found) for role, found in of.items()} == {"anchor": 3, "same": 2, "check": 2}
    assert all(trial.always for found in of.values() for trial in found)
    assert {tuple(sound.form for sound in trial.sounds) for trial in of["anchor"]} == {("plain", "lowpass")}
    assert {trial.sounds[0].system for trial in of["anchor"]} == set("xyz")  # they take turns
    assert all(trial.ask == ("noise",) for trial in of["check"])


def test_a_rating_test_has_every_clip_once_and_no_text_without_captions(items: list[Item]) -> None:
    trials = designed("rating", ["x", "y"], items, Controls(2, 1, 1, "noise"), np.random.default_rng(0), False, "y")
    clips = [trial.sounds for trial in trials if trial.role == "clip"]
    assert {sounds[0] for sounds in clips} == {Sound(name, f"c{n}") for n in range(6) for name in "xy"}
    assert len(clips) == 12 and all(trial.ask == ("ovl",) for trial in trials if trial.role != "check")
    anchors = [trial.sounds for trial in trials if trial.role == "anchor"]
    assert all(len(sounds) == 1 and sounds[0].form == "noise" and sounds[0].system == "y" for sounds in anchors)


def test_more_controls_than_clips_are_refused(items: list[Item]) -> None:
    with pytest.raises(MusiccmError, match="checks: expected from 0 to 6"):
        designed("rating", ["x"], items, Controls(checks=7), np.random.default_rng(0), False)
