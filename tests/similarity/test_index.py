"""The index on disk: read back as written, resumed after a kill, refused when damaged, foreign or empty."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from musiccm.similarity.faiss_search import FaissSearch, build_faiss
from musiccm.similarity.gallery import RowGallery
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.index_writer import PlannedClip, write_index
from musiccm.similarity.nearest import Queries, nearest_clips
from musiccm.similarity.sim_aa import SimAA

KEY = {"clap": "c" * 64, "corpus": "x", "sample_rate_hz": 100, "window_samples": 500, "hop_samples": 250}
COUNTS = [1, 4, 2, 9, 1, 1, 3]
CLIPS = [PlannedClip(f"klíp/{n}", f"/audio/{n}.flac", [2.5 * w for w in range(count)])
         for n, count in enumerate(COUNTS)]
WIDTH = 6


def rows() -> torch.Tensor:
    return torch.randn(sum(COUNTS), WIDTH, generator=torch.Generator().manual_seed(0))


def embedder(calls: list[tuple[int, int]], fail_at: int | None = None):
    def embed(first: int, last: int) -> torch.Tensor:
        if first == fail_at:
            raise KeyboardInterrupt
        calls.append((first, last))
        return rows()[sum(COUNTS[:first]) : sum(COUNTS[:last])]

    return embed


def write(folder: Path, calls: list | None = None, fail_at: int | None = None, **changes) -> TrainingIndex:
    write_index(folder, {**KEY, **changes.pop("key", {})}, {"bundle": "b"}, CLIPS, WIDTH,
                embedder([] if calls is None else calls, fail_at), shard_rows=5, **changes)
    return TrainingIndex(folder)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    index = write(tmp_path)
    unit = torch.nn.functional.normalize(rows(), dim=1)
    torch.testing.assert_close(index.read(0, index.n_rows), unit)
    torch.testing.assert_close(index.read(4, 17), unit[4:17])  # across shards
    assert list(index.ids) == [clip.id for clip in CLIPS] and index.paths[-1] == "/audio/6.flac"
    assert index.first_row.tolist() == [0, 1, 5, 7, 16, 17, 18, 21]
    assert index.start_s(9) == 5.0 and index.window_s == 5.0
    found, expected = (nearest_clips(g, Queries(rows()[:3], [1, 1, 1]), 2) for g in (
        index, RowGallery(rows(), [c.id for c in CLIPS for _ in c.starts_s])))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    for again in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert torch.equal(again.read(0, 3), index.read(0, 3))


def test_half_precision_moves_a_cosine_by_its_rounding_at_most(tmp_path: Path) -> None:
    index = write(tmp_path, dtype=torch.float16)
    assert load_file(tmp_path / "rows-00000.safetensors")["audio"].dtype == torch.float16
    read = index.read(0, index.n_rows)
    lengths = read.double().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
    unit = torch.nn.functional.normalize(rows().double(), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)).double())
    error = (queries @ read.double().T - queries @ unit.T).abs().max()
    # a component is rounded by 2^-11 of itself, or, below the smallest normal number, by 2^-25
    assert 0 < error <= 2**-11 + WIDTH**0.5 * 2**-25
    with pytest.raises(MusiccmError, match="something else: dtype is 'float16'|the shards|something else"):
        write(tmp_path)


def test_samples_are_known_by_their_hash_and_an_older_index_does_without(tmp_path: Path) -> None:
    clips = [PlannedClip("a", "a.flac", [0.0], "abc"), PlannedClip("b", "b.flac", [0.0], "def")]
    write_index(tmp_path, KEY, {}, clips, WIDTH, lambda first, last: rows()[first:last])
    assert list(TrainingIndex(tmp_path).samples) == ["abc", "def"]
    path = tmp_path / "columns.safetensors"
    columns = {name: column for name, column in load_file(path).items() if not name.startswith("samples")}
    save_file(columns, path, metadata={"digest": TrainingIndex(tmp_path).digest})
    assert list(TrainingIndex(tmp_path).samples) == ["", ""]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, calls, fail_at=3)
    assert calls == [(0, 2), (2, 3)]
    with pytest.raises(MusiccmError, match="goes on where it stopped"):
        TrainingIndex(tmp_path)
    skipped: list[int] = []
    index = write(tmp_path, calls, skipped=skipped.append)
    assert calls == [(0, 2), (2, 3), (3, 4), (4, 7)] and skipped == [5, 2]
    torch.testing.assert_close(index.read(0, 21), torch.nn.functional.normalize(rows(), dim=1))
    write(tmp_path, calls)
    assert len(calls) == 4


def test_the_same_index_is_the_same_bytes(tmp_path: Path) -> None:
    """Shards of an earlier version, which had a second entry beside the digest, still count."""

    def contents(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    clips = [PlannedClip(f"c{n}", "x", [0.0]) for n in range(24)]  # in as many shards: two orders would show
    for name in ("first", "second"):
        write_index(tmp_path / name, KEY, {}, clips, 3, lambda a, b: torch.eye(3)[:1] * (a % 5), shard_rows=1)
    assert contents("first") == contents("second") and len(contents("first")) == 26
    assert TrainingIndex(tmp_path / "first").about["silent_windows"] == 5
    for path in (tmp_path / "second").glob("rows-*"):
        rows = load_file(path)["audio"]
        damage(path, lambda _, rows=rows: rows)
    write_index(tmp_path / "second", KEY, {}, clips, 3, lambda a, b: torch.ones(1, 3), shard_rows=1)
    assert TrainingIndex(tmp_path / "second").about["silent_windows"] == 0, "as those shards say themselves"


def test_an_index_that_is_being_written_is_told(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "index"):
        with pytest.raises(MusiccmError, match="index is being written by"):
            TrainingIndex(tmp_path / "index")
        (tmp_path / "index" / "x").write_text("")
    with pytest.raises(MusiccmError, match="no index of training clips here"):
        TrainingIndex(tmp_path / "index")


def test_silent_windows_are_similar_to_nothing(tmp_path: Path) -> None:
    write_index(tmp_path, KEY, {}, [PlannedClip("a", "a", [0.0]), PlannedClip("b", "b", [0.0])], 2,
                lambda first, last: torch.tensor([[0.0, 0.0], [-1.0, 0.0]]))
    index = TrainingIndex(tmp_path)
    assert index.about["silent_windows"] == 1
    found = nearest_clips(index, Queries(torch.tensor([[1.0, 0.0]]), [1]), 2)
    assert found.cosine_QK.tolist() == [[0.0, -1.0]]


def test_another_corpus_or_clap_is_refused_by_reason(tmp_path: Path) -> None:
    write(tmp_path)
    for change in ({"corpus": "y"}, {"clap": "d" * 64}, {"hop_samples": 100}):
        (name,) = change
        with pytest.raises(MusiccmError, match=f"{name} is .*--overwrite"):
            write(tmp_path, key=change)
    assert write(tmp_path, key={"corpus": "y"}, overwrite=True).key["corpus"] == "y"
    with pytest.raises(MusiccmError, match="another CLAP"):
        SimAA.from_index(tmp_path, clap="e" * 64)
    metric = SimAA.from_index(tmp_path, clap="c" * 64)
    metric.update(rows()[5:7], ["g", "h"])
    result = metric.compute()
    assert (result["sim_aa_95"], result["n"], result["n_train"]) == (1.0, 2, len(CLIPS))
    assert {(m.nearest_id, m.nearest_start_s) for m in result["matches"]} == {("klíp/2", 0.0), ("klíp/2", 2.5)}
    with pytest.raises(MusiccmError, match="found 7"):
        metric.update(torch.ones(1, 7), ["i"])


def damage(path: Path, change) -> None:
    tensors = load_file(path)
    tensors["audio"] = change(tensors["audio"].clone())
    metadata = {"digest": json.loads((path.parent / "index.json").read_text())["digest"], "silent": "0"}
    save_file({"audio": tensors["audio"]}, path, metadata=metadata)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("hurt", "expected"), [
    (lambda f: (f / "rows-00001.safetensors").write_bytes(b"junk" * 30), "rows-00001.*damaged"),
    (lambda f: cut(f / "rows-00001.safetensors"), "rows-00001.*damaged"),
    (lambda f: damage(f / "rows-00001.safetensors", lambda x: x * torch.nan), "rows-00001.*damaged"),
    (lambda f: damage(f / "rows-00001.safetensors", lambda x: x * 2), "of length 1"),
    (lambda f: damage(f / "rows-00001.safetensors", lambda x: x[1:].clone()), "expected 2 rows"),
    (lambda f: (f / "rows-00001.safetensors").unlink(), "1 of 4 shards are missing, first rows-00001"),
    (lambda f: (f / "columns.safetensors").write_bytes(b""), "columns.safetensors: damaged"),
    (lambda f: (f / "columns.safetensors").unlink(), "columns.safetensors"),
    (lambda f: (f / "index.json").write_text("{}"), "index.json: not an index"),
    (lambda f: (f / "index.json").write_text("no json"), "index.json: not an index"),
    (lambda f: (f / "index.json").unlink(), "no index of training clips here"),
])
def test_damage_is_named(tmp_path: Path, hurt, expected: str) -> None:
    write(tmp_path)
    hurt(tmp_path)
    with pytest.raises(MusiccmError, match=expected):
        index = TrainingIndex(tmp_path)
        nearest_clips(index, Queries(rows()[:1], [1]))


def test_a_damaged_shard_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "rows-00002.safetensors").write_bytes(b"half")
    calls: list[tuple[int, int]] = []
    write(tmp_path, calls)
    assert calls == [(3, 4)]


def test_an_index_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="found none"):
        write_index(tmp_path, KEY, {}, [], WIDTH, embedder([]))
    write(tmp_path)
    tensors = load_file(tmp_path / "columns.safetensors")
    tensors["first_row"] = torch.zeros(1, dtype=torch.long)
    save_file(tensors, tmp_path / "columns.safetensors",
              metadata={"digest": json.loads((tmp_path / "index.json").read_text())["digest"]})
    with pytest.raises(MusiccmError, match="zero clips"):
        TrainingIndex(tmp_path)
    with pytest.raises(MusiccmError, match="check the CLAP weights"):
        write_index(tmp_path / "x", KEY, {}, CLIPS, WIDTH, lambda a, b: torch.full((5, WIDTH), torch.nan), shard_rows=5)


@pytest.mark.parametrize("factory", ["Flat", "IVF2,SQfp16"])
def test_faiss_finds_what_the_exact_search_finds(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(1)
    clips = [PlannedClip(f"c{n}", "x", [0.0, 1.0, 2.0]) for n in range(70)]
    train = torch.randn(210, WIDTH, generator=generator)
    write_index(tmp_path, KEY, {}, clips, WIDTH, lambda a, b: train[3 * a : 3 * b], shard_rows=40)
    index = TrainingIndex(tmp_path)
    with pytest.raises(MusiccmError, match="no FAISS index"):
        FaissSearch(index)
    with pytest.raises(MusiccmError, match="does not understand"):
        build_faiss(index, "Nonsense7")
    build_faiss(index, factory)
    queries = Queries(train[:60], [3] * 20, list(range(20)))
    found, exact = FaissSearch(index).nearest_clips(queries, 2), nearest_clips(index, queries, 2)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.equal(ours, theirs)
    write_index(tmp_path, {**KEY, "corpus": "y"}, {}, clips, WIDTH, lambda a, b: train[3 * a : 3 * b], overwrite=True)
    with pytest.raises(MusiccmError, match="no FAISS index"):
        FaissSearch(TrainingIndex(tmp_path))


def test_faiss_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MusiccmError, match="pip install 'musiccm\\[faiss\\]'"):
        build_faiss(write(tmp_path))
