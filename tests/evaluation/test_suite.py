"""Several networks behind one suite: each figure under its network's name, none under another's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musiccm.embedders import Embedder, Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.suite import FeatureExtractor, Features, MetricSuite
from musiccm.metrics import FrechetInfinity, KernelDistance
from musiccm.metrics.readings import Tempo
from musiccm.similarity.sim_aa import SimAA

N = 30
GENERATOR = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(N, 12, generator=GENERATOR), torch.randn(N, 12, generator=GENERATOR) + 0.2
IDS = [f"c{i:02d}" for i in range(N)]


class Halves(Embedder):
    """Two rows a clip; no logits."""

    sample_rate_hz, min_duration_s, fingerprint = 8000, 12 / 8000, "halves"

    def __init__(self, name: str = "halves") -> None:
        super().__init__()
        self.name = name

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        rows = waveform_BS[:, :12].reshape(-1, 6)
        return Embeddings(rows, [2] * len(waveform_BS))


class Whole(Embedder):
    name, sample_rate_hz, min_duration_s, fingerprint = "whole", 8000, 12 / 8000, "whole"
    groups, tags = {"x": [0, 1]}, ["x:a", "x:b"]

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        return Embeddings(waveform_BS[:, :4], [1] * len(waveform_BS), waveform_BS[:, 4:6])


def extractor(clap: bool = True) -> FeatureExtractor:
    return FeatureExtractor([Halves(), Whole()], (lambda wave, rate: wave[:, :3]) if clap else None, 8000)


def test_each_network_has_its_figures_and_its_rows() -> None:
    embedders = extractor()
    suite = MetricSuite(embedders.classifies(), ([f"t{i}" for i in range(4)], REAL[:4, :3]),
                        options={"is": {"splits": 5}})
    suite.update_reference(embedders(REAL), REAL[:, :3], IDS)
    for part in (slice(0, 11), slice(11, N)):
        suite.update(embedders(FAKE[part]), FAKE[part, :3], IDS[part])
    row, nearest = suite.compute()
    assert list(row) == [
        "fd_halves", "rows_halves", "fd_whole", "is_whole_mean", "is_whole_std", "kl_whole", "kl_whole_exact",
        "ta_similarity", "clap_t", "ra_similarity", "clap_a", "sim_aa_90", "sim_aa_95", "n",
    ]
    assert (row["n"], row["rows_halves"], len(nearest)) == (N, 2 * N, N)
    halves = [rows.reshape(-1, 6).double() for rows in (REAL, FAKE)]
    gap = (halves[0].mean(0) - halves[1].mean(0)).square().sum()
    root = torch.linalg.eigvals(halves[0].T.cov() @ halves[1].T.cov()).sqrt().real.sum()
    assert row["fd_halves"] == pytest.approx(
        float(gap + halves[0].T.cov().trace() + halves[1].T.cov().trace() - 2 * root), rel=1e-9
    )
    assert row["ta_similarity"] == pytest.approx(1.0) and row["clap_t"] == pytest.approx(100.0)
    similar = torch.nn.functional.cosine_similarity(REAL[:, :3].double(), FAKE[:, :3].double())
    assert row["ra_similarity"] == pytest.approx(float(similar.mean()))
    assert row["clap_a"] == pytest.approx(100 * float(similar.clamp(min=0).mean()))
    assert suite.references()["retrieval_max_gallery"] == "train"
    suite.reset_generated()
    suite.update(embedders(REAL[:20]), REAL[:20, :3], IDS[:20])
    again, _ = suite.compute()
    assert again["kl_whole_exact"] == pytest.approx(0.0, abs=1e-12) and again["ra_similarity"] == pytest.approx(1.0)
    assert (again["n"], again["n_reference"], again["rows_halves"]) == (20, N, 40)


def test_a_suite_without_clap_and_text_gives_what_is_left() -> None:
    embedders = extractor(clap=False)
    suite = MetricSuite(embedders.classifies(), text=False)
    suite.update_reference(embedders(REAL), None, IDS)
    suite.update(embedders(FAKE), None, IDS)
    row, nearest = suite.compute()
    assert row["ta_similarity"] is None and row["sim_aa_90"] is None and nearest == []
    assert row["n"] == N and row["fd_whole"] > 0
    assert suite.references() == {}
    with pytest.raises(MusiccmError, match="give CLAP.s"):
        MetricSuite(embedders.classifies()).update_reference(embedders(REAL), None, IDS)


def test_an_index_of_the_training_set_takes_the_place_of_its_rows() -> None:
    embedders = extractor()
    suite = MetricSuite(embedders.classifies(), lambda: SimAA(REAL[:2, :3], ["t0", "t1"]), gallery_ND=REAL[:2, :3])
    suite.update_reference(embedders(REAL), REAL[:, :3], IDS)
    suite.update(embedders(REAL[:2]), REAL[:2, :3], IDS[:2])
    row, nearest = suite.compute()
    assert (row["sim_aa_90"], row["sim_aa_95"]) == (1.0, 1.0)
    assert [match["nearest_id"] for match in nearest] == ["t0", "t1"]
    assert suite.references()["n_retrieval_max_gallery"] == 2


def test_attributes_are_the_taggers() -> None:
    embedders = extractor()
    assert (embedders.groups, embedders.tags, embedders.tagger.name) == ({"x": [0, 1]}, ["x:a", "x:b"], "whole")
    suite = MetricSuite(embedders.classifies(), groups=embedders.groups, tagger="whole", text=False)
    suite.update_reference(embedders(REAL), None, IDS)
    wanted = embedders.wanted([{"x": "ab"[int(wave[5] > wave[4])]} for wave in FAKE])
    suite.update(embedders(FAKE), None, IDS, wanted)
    assert suite.compute()[0]["acc_x"] == 1.0
    with pytest.raises(MusiccmError, match="expected logits and the tags"):
        suite.update(embedders(FAKE), None, IDS)
    with pytest.raises(MusiccmError, match=r"expected one of the embedders \['halves', 'whole'\], found 'thirds'"):
        MetricSuite(embedders.classifies(), groups=embedders.groups, tagger="thirds")
    silent = MetricSuite(embedders.classifies(), groups=embedders.groups, tagger="halves", text=False)
    with pytest.raises(MusiccmError, match="expected logits and the tags"):
        silent.update(embedders(FAKE), None, IDS, wanted)


def test_readings_come_from_a_network_that_is_no_classifier() -> None:
    class Tempi(Whole):
        name, classifies, groups, tags = "tempi", False, {"tempo_bpm": Tempo((0,))}, ["bpm"]

        def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
            bpm_B1 = torch.tensor([[61.0], [120.0], [90.0]])[: len(waveform_BS)]
            return Embeddings(waveform_BS[:, :4], [1] * len(waveform_BS), bpm_B1)

    embedders = FeatureExtractor([Tempi()], None, 8000)
    suite = MetricSuite(embedders.classifies(), groups=embedders.groups, tagger="tempi", text=False, always=[])
    # right within 6 %; right an octave up; wrong; real clips of the same sound are asked 90 each
    suite.update_reference(embedders(REAL[:3]), None, IDS[:3], targets_BG=torch.full((3, 1), 90.0))
    suite.update(embedders(FAKE[:3]), None, IDS[:3], torch.tensor([[60.0], [60.0], [60.0]]))
    assert suite.compute()[0]["acc_tempo_bpm"] == pytest.approx(2 / 3)


def test_names_and_rows_that_cannot_be_are_refused() -> None:
    with pytest.raises(MusiccmError, match="different names"):
        FeatureExtractor([Halves(), Halves()], None, 8000)
    with pytest.raises(MusiccmError, match="lower-case"):
        MetricSuite({"FD pann": True})

    class Wrong(Halves):
        def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
            return super().forward(waveform_BS, sample_rate_hz)._replace(counts=[2])

    with pytest.raises(MusiccmError, match="wrong: expected counts and logits of 3 clips"):
        FeatureExtractor([Wrong("wrong")], None, 8000)(REAL[:3])
    with pytest.raises(MusiccmError, match="expected logits for IS"):
        MetricSuite({"halves": True}, text=False).update(
            Features({"halves": Embeddings(REAL[:, :6], [1] * N)}, None), None, IDS
        )


def test_one_clip_gives_what_one_clip_can_and_says_what_not(caplog: pytest.LogCaptureFixture) -> None:
    embedders = extractor()
    suite = MetricSuite(embedders.classifies(), also={"kad": ["whole"], "fd_inf": ["halves"]})
    suite.update_reference(embedders(REAL), REAL[:, :3], IDS)
    suite.update(embedders(FAKE[:1]), FAKE[:1, :3], IDS[:1])
    row, _ = suite.compute()
    assert row["n"] == 1 and row["kl_whole"] > 0 and row["ta_similarity"] == pytest.approx(1.0)
    assert [row[key] for key in ("fd_whole", "kad_whole", "fd_inf_halves", "is_whole_mean")] == [None] * 4
    assert row["fd_halves"] > 0  # two rows
    for key in ("fd_whole", "kad_whole", "fd_inf_halves", "is_whole"):
        assert f"{key} left out" in caplog.text
    suite.reset_generated()
    with pytest.raises(MusiccmError, match="found none"):
        suite.compute()


def test_kernel_distance_and_extrapolation_where_asked_for() -> None:
    embedders = extractor(clap=False)
    suite = MetricSuite(embedders.classifies(), text=False, also={"kad": ["halves"], "fd_inf": ["whole"]})
    suite.update_reference(embedders(REAL), None, IDS)
    for part in (slice(0, 7), slice(7, N)):
        suite.update(embedders(FAKE[part]), None, IDS[part])
    row, _ = suite.compute()
    kad, fd_inf = KernelDistance(), FrechetInfinity()
    for metric, rows, counts in ((kad, 6, [2] * N), (fd_inf, 4, [1] * N)):
        for waves, real in ((REAL, True), (FAKE, False)):
            metric.update(waves.reshape(-1, 6) if rows == 6 else waves[:, :4], IDS, real, counts)
    assert row["kad_halves"] == pytest.approx(kad.compute()["kad"], rel=1e-9)
    assert row["fd_inf_whole"] == pytest.approx(fd_inf.compute()["fd_inf"], rel=1e-9)
    assert "kad_whole" not in row and "fd_inf_halves" not in row
    with pytest.raises(MusiccmError, match="found .'pann'"):
        MetricSuite(embedders.classifies(), also={"kad": ["pann"]})


def test_kl_is_of_the_pairs() -> None:
    embedders = extractor(clap=False)
    suite = MetricSuite(embedders.classifies(), text=False)
    suite.update_reference(embedders(REAL[:25]), None, IDS[:25])
    suite.update_reference(embedders(REAL[25:]), None, [f"other{i}" for i in range(5)], paired=False)
    suite.update(embedders(REAL[:25]), None, IDS[:25])
    suite.update(embedders(FAKE[25:]), None, IDS[25:], paired=False)
    row, _ = suite.compute()
    assert (row["n"], row["n_kl_whole"], row["kl_whole_exact"]) == (N, 25, pytest.approx(0.0, abs=1e-12))
    suite.reset_generated()
    suite.update(embedders(FAKE[25:]), None, IDS[25:], paired=False)
    assert suite.compute()[0]["kl_whole"] is None
