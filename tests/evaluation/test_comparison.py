"""Comparisons of sets whose distances are known: no bias beyond the stated error, and intervals that hold the truth."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.evaluation.comparison import ClipRows, ComparedRow, compare_sets
from musiccm.evaluation.spread import compare_spreads
from musiccm.metrics import Coverage, FrechetDistance, FrechetInfinity, KernelDistance, Mauve
from musiccm.metrics.clips import TooFewClips
from musiccm.metrics.coverage import expected_coverage
from musiccm.metrics.kernel import median_distance
from musiccm.metrics.spread import spread

#: Shift of the mean in every dimension, and scale, of each model: their distances are known.
MODELS = {"teacher@50": (0.5, 1.0), "student@4": (0.3, 1.0), "perfect@4": (0.0, 1.0), "wide@4": (0.0, 1.4)}


def clip_rows(rows: Tensor, name: str = "c", counts: list[int] | None = None) -> ClipRows:
    counts = counts or [1] * len(rows)
    return ClipRows([f"{name}{i:05d}" for i in range(len(counts))], rows, counts)


class World:
    """Answers to n captions: a share of each feature's variance is the caption's, the rest each model's own."""

    def __init__(self, n: int, d: int, share: float, seed: int, model_share: float | None = None) -> None:
        self.n, self.d, self.share = n, d, share
        self.generator = torch.Generator().manual_seed(seed)
        self.common = self.noise()
        self.real, self.floor = self.answers(), self.answers()
        self.models = {label: self.answers(*spec, model_share) for label, spec in MODELS.items()}

    def noise(self) -> Tensor:
        return torch.randn(self.n, self.d, generator=self.generator, dtype=torch.float64)

    def answers(self, shift: float = 0.0, scale: float = 1.0, share: float | None = None) -> Tensor:
        share = self.share if share is None else share
        return shift + scale * (share**0.5 * self.common + (1 - share) ** 0.5 * self.noise())

    def compare(self, draws: int = 60, only: str | None = None, **options: Any) -> dict[str, dict[str, Any]]:
        rows = [ComparedRow(label, clip_rows(found), float(label.split("@")[1]) * (2 if "teacher" in label else 1),
                            label.startswith("teacher")) for label, found in self.models.items()
                if only in (None, label)]
        return compare_sets("net", clip_rows(self.real), clip_rows(self.floor), rows,
                            "teacher@50" if only is None else None, draws=draws, **options)

    def true_fd(self, label: str) -> float:
        shift, scale = MODELS[label]
        return self.d * (shift**2 + (scale - 1) ** 2)

    def true_kad(self, label: str) -> float:
        """Of N(0, 1) and N(shift, scale^2) by the Gaussian kernel with this world's bandwidth."""
        shift, scale = MODELS[label]
        h2 = median_distance(self.real) ** 2

        def mean(variance: float, gap: float) -> float:
            return (h2 / (h2 + variance)) ** (self.d / 2) * math.exp(-self.d * gap**2 / (2 * (h2 + variance)))

        return 100 * (mean(2, 0) + mean(2 * scale**2, 0) - 2 * mean(1 + scale**2, shift))


def expected_of(world: World, label: str) -> dict[str, float]:
    """The truth for each figure that has a closed form."""
    found = {"excess_fd_net": world.true_fd(label), "kad_net": world.true_kad(label),
             "kad_net_ratio": world.true_kad(label) / world.true_kad("teacher@50"),
             "excess_fd_net_ratio": world.true_fd(label) / world.true_fd("teacher@50")}
    if label == "perfect@4":
        found["coverage_net"] = expected_coverage(world.n // 2, world.n // 2)
    return found


def check_calibration(worlds: list[World], draws: int) -> None:
    """Over worlds: each figure less its stated bias is the truth on average; its interval holds the truth as often as
    it says, less four standard errors of that share; and it is not much wider than the figures are spread.
    """
    results = [world.compare(draws=draws) for world in worlds]
    wide: dict[str, list[float]] = {}
    for label in MODELS:
        for key in expected_of(worlds[0], label):
            error, inside, reach = [], [], []
            for world, result in zip(worlds, results, strict=True):
                row, truth = result[label], expected_of(world, label)[key]
                centre = row[key] - row.get(f"{key}_bias", 0.0)
                error.append(centre - truth)
                reach.append(min(centre - row[f"{key}_low"], row[f"{key}_high"] - centre))
                inside.append(row[f"{key}_low"] - 1e-12 <= truth <= row[f"{key}_high"] + 1e-12)
            values, n = np.array(error), len(error)
            if not key.endswith("_ratio"):  # of which the expectation is not that of its parts
                assert abs(values.mean()) < 4 * values.std(ddof=1) / n**0.5 + 0.01 * world.true_fd("student@4"), (
                    label, key)
                wide.setdefault(key, []).append(np.mean(reach) / (1.96 * values.std(ddof=1)))
            assert np.mean(inside) >= 0.95 - 4 * (0.95 * 0.05 / n) ** 0.5, (label, key, np.mean(inside))
    for key, found in wide.items():  # over the models, for the spread of few worlds is rough
        assert np.mean(found) < 1.3 * (1 + 2 / n**0.5), (key, found)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_no_bias_beyond_the_stated_error(share: float) -> None:
    """The floor shares as much with the reference as the models do."""
    check_calibration([World(96, 6, share, seed) for seed in range(10)], draws=24)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("model_share", [None, 0.3])
def test_intervals_hold_the_truth_as_often_as_they_say(share: float, model_share: float | None) -> None:
    """Also where the models share less of their variance with the reference than the floor does, or more."""
    worlds = [World(256, 12, share, seed, model_share) for seed in range(60)]
    check_calibration(worlds, draws=48)


def test_the_bias_that_the_floor_does_not_take_out_is_stated_and_as_large_as_theory_says() -> None:
    """Of two standard Gaussians with correlation r, FD's bias is (2 (1 - r) d + (1 - r^2) d (d + 1) / 2) / n."""
    n, d, share, model_share, worlds = 200, 10, 0.9, 0.3, 12

    def bias(r: float) -> float:
        return (2 * (1 - r) * d + (1 - r**2) * d * (d + 1) / 2) / n

    theory = bias((share * model_share) ** 0.5) - bias(share)
    rows = [World(n, d, share, seed, model_share).compare(24, "perfect@4")["perfect@4"] for seed in range(worlds)]
    stated, found = (np.array([row[key] for row in rows]) for key in ("excess_fd_net_bias", "excess_fd_net"))
    assert stated.mean() == pytest.approx(theory, rel=0.15)
    assert abs((found - stated).mean()) < 4 * found.std(ddof=1) / worlds**0.5 < theory
    assert all(row["excess_fd_net_low"] <= row["excess_fd_net"] <= row["excess_fd_net_high"] for row in rows)


def test_figures_are_those_of_the_metrics() -> None:
    world = World(60, 6, 0.5, 0)
    found = world.compare(also=("recall", "precision", "density", "fd_inf", "mauve"))["student@4"]
    expected: dict[str, float] = {}
    for metric in (FrechetDistance(), KernelDistance(), Coverage(), FrechetInfinity(), Mauve()):
        for rows, real in ((world.real, True), (world.models["student@4"], False)):
            metric.update(rows, clip_rows(rows).ids, real)
        expected |= metric.compute()
    for name in ("fd", "kad", "coverage", "recall", "precision", "density", "fd_inf", "mauve"):
        assert found[f"{name}_net"] == pytest.approx(expected[name], rel=1e-6), name
    assert found["coverage_net_expected"] == expected["expected"]
    assert found["excess_fd_net"] == pytest.approx(found["fd_net"] - found["floor_fd_net"])
    json.dumps(found)  # plain numbers


@pytest.mark.parametrize(("counts", "n", "d"), [([1, 3, 2, 2], 48, 5), ([1], 40, 64)])
def test_halves_are_those_of_the_metrics_for_many_rows_a_clip_and_for_wide_ones(
    counts: list[int], n: int, d: int
) -> None:
    """Another route to the same intervals: each half scored by the metrics themselves."""
    from musiccm.evaluation.halves import ClipSet, Halves

    generator = torch.Generator().manual_seed(3)
    number = [counts[i % len(counts)] for i in range(n)]
    real, fake = (torch.randn(sum(number), d, generator=generator).double() + shift for shift in (3.0, 3.2))
    ids = [f"c{i:03d}" for i in range(n)]
    sets = [ClipSet("set", ids, rows, number) for rows in (real, fake)]
    halves = Halves(sets[0], 0, 6, 0)
    frechet, kernel = halves.frechet(sets[1]), halves.kernel(sets[1])
    parts = [rows.split(number) for rows in (real, fake)]
    for place, split in enumerate(halves.splits):
        for side, half in enumerate(split.real):
            metrics = FrechetDistance(), KernelDistance()
            metrics[1].float()
            for metric in metrics:
                for found, is_real in zip(parts, (True, False), strict=True):
                    metric.update(torch.cat([found[i] for i in half]), [ids[i] for i in half], is_real,
                                  [number[i] for i in half])
            assert frechet.parts_P2[place, side] == pytest.approx(metrics[0].compute()["fd"], rel=1e-8)
            scored = metrics[1].compute()
            # the metric takes its bandwidth from the half; the comparison keeps that of the whole reference
            assert kernel.parts_P2[place, side] == pytest.approx(scored["kad"], abs=3.0)
    whole = KernelDistance()
    whole.update(real, ids, True, number)
    whole.update(fake, ids, False, number)
    assert kernel.whole == pytest.approx(whole.compute()["kad"], rel=1e-5)


def test_a_floor_of_other_clips_is_split_by_itself_and_its_larger_bias_is_taken_out() -> None:
    """Models that answer the reference's captions lie closer to it than other clips do: the excess looks too small."""
    n, d, worlds = 200, 10, 12
    errors, plain = [], []
    for seed in range(worlds):
        world = World(n, d, 0.9, seed)
        other = torch.randn(n - 40, d, generator=world.generator, dtype=torch.float64)
        rows = [ComparedRow("perfect@4", clip_rows(world.models["perfect@4"]), 4, False)]
        found = compare_sets("net", clip_rows(world.real), clip_rows(other, "o"), rows, None, draws=24)
        errors.append(found["perfect@4"]["excess_fd_net"] - found["perfect@4"]["excess_fd_net_bias"])
        plain.append(found["perfect@4"]["excess_fd_net"])
        assert found["floor"]["fd_net"] == found["perfect@4"]["floor_fd_net"]
    assert np.mean(plain) < -0.2
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / worlds**0.5 + 0.01


def test_ratios_are_to_the_baseline_and_to_the_best_teacher_with_no_more_calls() -> None:
    world = World(300, 6, 0.5, 1)
    specs = {"teacher@50": (0.4, 100.0, True), "teacher@4": (0.8, 8.0, True), "teacher_dpm@4": (0.6, 8.0, True),
             "teacher_unguided@4": (0.7, 4.0, True), "student@4": (0.2, 4.0, False), "student@8": (0.3, 8.0, False),
             "student@1": (0.9, 1.0, False), "unknown@4": (0.5, None, False)}
    rows = [ComparedRow(label, clip_rows(world.answers(shift)), calls, teacher)
            for label, (shift, calls, teacher) in specs.items()]
    found = compare_sets("net", clip_rows(world.real), clip_rows(world.floor), rows, "teacher@50", draws=40)
    named = {label: found[label]["equal_calls_teacher"] for label in specs}
    assert named == {"teacher@50": "teacher@50", "teacher@4": "teacher_dpm@4", "teacher_dpm@4": "teacher_dpm@4",
                     "teacher_unguided@4": "teacher_unguided@4", "student@4": "teacher_unguided@4",
                     "student@8": "teacher_dpm@4", "student@1": None, "unknown@4": None}
    student, teacher = found["student@4"], found["teacher_unguided@4"]
    assert student["excess_fd_net_equal_calls_ratio"] == pytest.approx(
        student["excess_fd_net"] / teacher["excess_fd_net"])
    low, high = (student[f"excess_fd_net_equal_calls_ratio_{end}"] for end in ("low", "high"))
    assert low < student["excess_fd_net_equal_calls_ratio"] < high
    assert 0.04 / 0.49 == pytest.approx((low + high) / 2, abs=2 * (high - low))
    assert found["student@4"]["excess_fd_net_equal_calls_teacher"] == "teacher_unguided@4"
    assert found["student@1"]["excess_fd_net_equal_calls_ratio"] is None
    for key in ("excess_fd_net", "kad_net", "coverage_net"):
        assert student[f"{key}_ratio"] == pytest.approx(student[key] / found["teacher@50"][key])
        assert [found["teacher@50"][f"{key}_ratio{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]
    assert student["excess_fd_net_ratio"] == pytest.approx(0.25, abs=0.15)
    assert "excess_fd_net_ratio" not in found["floor"] and found["floor"]["excess_fd_net"] == 0.0
    assert found["floor"]["kad_net_low"] < 0 < found["floor"]["kad_net_high"]


def test_no_ratio_to_an_excess_that_may_be_nothing() -> None:
    world = World(120, 6, 0.5, 2)
    rows = [ComparedRow(label, clip_rows(found), 4, True) for label, found in world.models.items()]
    found = compare_sets("net", clip_rows(world.real), clip_rows(world.floor), rows, "perfect@4", draws=40)["wide@4"]
    for key in ("excess_fd_net_ratio", "kad_net_ratio"):
        assert (found[key], found[f"{key}_low"], found[f"{key}_high"]) == (None, None, None)
        assert "not clearly above 0" in found[f"{key}_why"]
    assert found["coverage_net_ratio"] < 1


def test_order_changes_nothing_and_the_seed_little() -> None:
    world = World(80, 4, 0.5, 4)
    found = world.compare(draws=32)
    order = torch.randperm(80, generator=world.generator).tolist()

    def shuffled(rows: Tensor) -> ClipRows:
        mine = clip_rows(rows)
        return ClipRows([mine.ids[i] for i in order], rows[order], [1] * 80)

    rows = [ComparedRow(label, shuffled(mine), float(label.split("@")[1]) * (2 if "teacher" in label else 1),
                        label.startswith("teacher")) for label, mine in world.models.items()]
    again = compare_sets("net", clip_rows(world.real), shuffled(world.floor), rows, "teacher@50", draws=32)
    assert again == found
    other = world.compare(draws=32, seed=1)["student@4"]
    width = found["student@4"]["excess_fd_net_high"] - found["student@4"]["excess_fd_net_low"]
    assert other["excess_fd_net_high"] - other["excess_fd_net_low"] == pytest.approx(width, rel=0.6)
    assert other["excess_fd_net"] == found["student@4"]["excess_fd_net"]


def test_without_a_floor_or_with_few_clips_less_is_said(caplog: pytest.LogCaptureFixture) -> None:
    world = World(40, 3, 0.5, 5)
    rows = [ComparedRow(label, clip_rows(found), 4, True) for label, found in world.models.items()]
    found = compare_sets("net", clip_rows(world.real), None, rows, "teacher@50", draws=20)
    assert list(found) == list(MODELS)
    student = found["student@4"]
    assert student["excess_fd_net"] is None and student["floor_fd_net"] is None and "kad_net_low" in student
    assert not any(key.startswith("excess_fd_net_") for key in student)
    few = [ComparedRow(row.label, clip_rows(row.rows.embedding_RE[:7]), 4, True) for row in rows]
    found = compare_sets("net", clip_rows(world.real[:7]), clip_rows(world.floor[:7]), few, "teacher@50")["student@4"]
    assert found["draws_net"] == 0 and found["coverage_net"] is None and not any(k.endswith("_low") for k in found)
    assert "coverage_net left out" in caplog.text


def test_wide_rows_rest_on_fewer_halves_and_say_so_and_their_bias_is_not_extrapolated() -> None:
    world = World(24, 600, 0.5, 6)
    found = world.compare(draws=200)["student@4"]
    assert found["draws_net"] == 56 and "excess_fd_net_bias" not in found
    assert World(24, 4, 0.5, 6).compare(draws=50)["student@4"]["draws_net"] == 50


def test_bad_input() -> None:
    world = World(20, 3, 0.5, 7)
    real, floor = clip_rows(world.real), clip_rows(world.floor)

    def row(rows: ClipRows, label: str = "a") -> ComparedRow:
        return ComparedRow(label, rows, 1, False)

    good = row(real)
    for message, arguments in {
        "each label once": (real, floor, [good, good], None),
        "none called 'floor'": (real, floor, [row(real, "floor")], None),
        "baseline: expected one of .'a'., found 'b'": (real, floor, [good], "b"),
        "a: expected the 20 clip ids of the reference, found 20, and 40 in": (
            real, floor, [row(clip_rows(world.real, "x"))], None),
        "floor: expected the 20 clip ids of the reference, found 9": (real, clip_rows(world.real[:9]), [good], None),
        "a: expected features of width 3": (real, floor, [row(clip_rows(world.real[:, :2]))], None),
        "a: expected each clip id once, found 1 repeats": (
            real, floor, [row(real._replace(ids=[*real.ids[:-1], real.ids[0]]))], None),
        "a: expected finite numbers, .* first .'c00002'": (real, floor, [row(clip_rows(
            world.real.index_fill(0, torch.tensor([2]), math.nan)))], None),
    }.items():
        with pytest.raises(MusiccmError, match=message):
            compare_sets("net", *arguments)
    with pytest.raises(MusiccmError, match="also: expected names among recall, .*, found fad"):
        compare_sets("net", real, floor, [good], None, also=("fad",))
    with pytest.raises(TooFewClips, match="at least 2 clips, found 1"):
        compare_sets("net", clip_rows(world.real[:1]), None, [], None)


def test_spreads_stand_beside_the_baseline_and_the_real_renderings() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = [i // 4 for i in range(160)]
    centres = torch.randn(40, 6, generator=generator).repeat_interleave(4, 0)
    sets = {name: centres + deviation * torch.randn(160, 6, generator=generator)
            for name, deviation in (("teacher@50", 0.5), ("student@4", 0.3), ("real", 0.6))}
    real = spread(sets["real"].view(40, 4, 6)[:, :2].reshape(80, 6), [i // 2 for i in range(80)])
    models = {name: spread(sets[name], captions) for name in ("teacher@50", "student@4")}
    found = compare_spreads("net", models, real, "teacher@50")
    assert list(found) == ["floor", "teacher@50", "student@4"]
    student = found["student@4"]
    assert student["spread_net_low"] < student["spread_net"] < student["spread_net_high"]
    assert student["spread_net_ratio_high"] < 1 and student["spread_net_real_ratio_high"] < 1
    assert student["spread_net_real_ratio"] == pytest.approx(student["spread_net"] / found["floor"]["spread_net"])
    assert "spread_net_real_ratio" not in found["floor"]
    assert compare_spreads("net", models, None, None).keys() == models.keys()


def test_an_excess_of_too_few_clips_has_neither_interval_nor_ratio_and_says_why() -> None:
    """At 63 clips of 16 dimensions a ratio is mostly bias; from four clips a dimension on it is corrected."""
    few, enough = (World(n, 16, 0.5, 3).compare()["student@4"] for n in (63, 64))
    assert "excess_fd_net_low" not in few and few["excess_fd_net_ratio"] is None
    assert few["excess_fd_net_why"] == few["excess_fd_net_ratio_why"]
    assert "63 clips are too few" in few["excess_fd_net_why"] and "from 64 on" in few["excess_fd_net_why"]
    assert few["kad_net_ratio"] is not None and few["kad_net_low"] < few["kad_net"] < few["kad_net_high"]
    assert enough["excess_fd_net_low"] <= enough["excess_fd_net"] and "excess_fd_net_why" not in enough
    assert enough["excess_fd_net_ratio"] is not None


def test_a_kernel_distance_keeps_its_ratio_where_clips_are_fewer_than_dimensions() -> None:
    """It has no bias of the number of clips, which is what an excess is refused for."""
    few = World(15, 16, 0.5, 3).compare(draws=20)["student@4"]
    assert few["excess_fd_net_ratio"] is None and few["excess_fd_net_ratio_why"]
    assert few["kad_net_low"] < few["kad_net"] < few["kad_net_high"] and few["kad_net_ratio"] is not None


def test_intervals_of_shares_end_where_shares_do() -> None:
    row = World(200, 2, 0.9, 5).compare(only="perfect@4")["perfect@4"]
    for name in ("coverage", "recall"):
        assert row[f"{name}_net"] > 0.9 and row[f"{name}_net"] <= row[f"{name}_net_high"] <= 1.0
