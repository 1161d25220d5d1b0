"""`prepare latents`: read in other processes, written in the background, and the same files however it goes."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_corpus import RATE_HZ, write_corpus
from tiny_bundle import build_random_bundle

from musiccm.audio import BadAudio
from musiccm.cli import main
from musiccm.data.latent_cache.files import CacheWriter, Unit
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.systems.encoding import clock, reading
from musiccm.systems.encoding.clock import PartClock
from musiccm.systems.encoding.encoder import Encoder
from musiccm.systems.encoding.reading import WorkBatch, WorkItem
from musiccm.systems.encoding.writing import BackgroundWriter
from tests.pretend_device import install, watching

SAMPLES = 8 * 16 * 160
BAD = "train_005.flac"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    data = {"root": str(write_corpus(folder / "corpus", 10, 2)), "kind": "latent", "clip_samples": SAMPLES,
            "bundle": str(build_random_bundle(folder / "bundle", evaluators=False)),
            "cache_dir": str(folder / "whole"), "windows_per_track": 2}
    (folder / "x.yaml").write_text(json.dumps({"data": {"class_path": "musiccm.data.module.MusicDataModule",
                                                        "init_args": data}}))
    assert encode(folder, folder / "whole", 0) == 0
    return folder


def encode(world: Path, cache: Path, workers: int) -> int:
    return main(["prepare", "latents", "--config", str(world / "x.yaml"), "--cache-dir", str(cache), "--workers",
                 str(workers), "--shard-size", "4", "--batch-size", "3", "--device", "cpu"])


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*")
            if path.is_file() and path.name != "encoding.json"}


def at_bad(then: Callable[[str], Any]) -> Callable[..., Any]:
    """`read_window`, but for one file; processes that are forked from this one have it too."""
    original = reading.read_window

    def read(path: str, *rest: Any) -> torch.Tensor:
        return then(path) if path.endswith(BAD) else original(path, *rest)

    return read


def unreadable(path: str) -> Any:
    raise BadAudio(path, "unreadable", "its end is missing")


def die(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_holds_what_its_windows_give(world: Path) -> None:
    """Batches of three and of one, as a shard of four is encoded in threes."""
    data = MusicDataModule(**json.loads((world / "x.yaml").read_text())["data"]["init_args"])
    data.setup("fit")
    bundle = Bundle.from_pretrained(world / "bundle")
    encoder = Encoder(bundle, SimpleNamespace(data=data))  # type: ignore[arg-type]
    rows = data.latent_cache("train").index
    windows = [reading.read_window(clip.path, clip.audio, SAMPLES, RATE_HZ, int(rows.starts_N[row]))
               for row in range(4, 8) for clip in [data.clips("train")[rows.clip_of(row)]]]
    found = load_file(world / "whole/train/shard-00001.safetensors")
    with torch.inference_mode():
        for part, places in ((torch.stack(windows[:3]), slice(0, 3)), (torch.stack(windows[3:]), slice(3, 4))):
            for name, expected in encoder.encode_audio(part).items():
                assert torch.equal(found[name][places], expected.half())
            assert torch.equal(found["clap_audio"][places], bundle.conditioner().audio(part, RATE_HZ))


def test_the_files_are_the_same_whoever_reads(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(world, tmp_path, 2) == 0
    expected = contents(world / "whole")
    assert contents(tmp_path) == expected and len([name for name in expected if "shard-" in name]) == 6
    report = json.loads((tmp_path / "encoding.json").read_text())
    assert (report["windows"], report["captions"]) == (24, 36)
    assert list(report["seconds"]) == ["read", "mel", "vae", "clap_audio", "clap_text", "write"]
    assert min(report["seconds"].values()) > 0 and sum(report["shares"].values()) == pytest.approx(1, abs=1e-3)
    # here one thread does all but reading and writing, and it is not counted twice
    alone = sum(report["seconds"][part] for part in ("mel", "vae", "clap_audio", "clap_text"))
    assert alone + sum(report["waited_s"].values()) <= report["wall_s"]
    assert "; encoding waited " in capsys.readouterr().out


@pytest.mark.parametrize(("workers", "then", "said"), [
    (0, unreadable, f"{BAD}: unreadable (its end is missing)"),
    (2, unreadable, f"{BAD}: unreadable (its end is missing)"),
    (2, die, "a process that reads audio was ended (DataLoader worker"),
])
def test_what_stops_a_reader_ends_the_command_and_it_can_be_gone_on_with(
    workers: int, then: Callable[[str], Any], said: str, world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read_window", at_bad(then))
        assert encode(world, tmp_path, workers) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    expected, left = contents(world / "whole"), contents(tmp_path)
    # tracks 4 and 5 are the third file, in which it stopped; a reader that is killed takes others' windows along
    assert "train/shard-00002.safetensors" not in left
    assert left.items() <= expected.items() and (then is die or "train/shard-00001.safetensors" in left)
    assert encode(world, tmp_path, workers) == 0
    assert contents(tmp_path) == expected


def test_what_cannot_be_written_ends_the_command(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, threads = CacheWriter.write, []

    def write(self: CacheWriter, unit: Unit, tensors: dict[str, torch.Tensor]) -> None:
        threads.append(threading.current_thread())
        if (unit.kind, unit.number) == ("shard", 1):
            raise MusiccmError("shard-00001: could not be written: the disk is full")
        original(self, unit, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "write", write)
        assert encode(world, tmp_path, 0) == 2
    assert "shard-00001: could not be written: the disk is full" in capsys.readouterr().err
    assert len(set(threads)) == 1 and threads[0] is not threading.main_thread() and not threads[0].is_alive()
    assert "train/shard-00001.safetensors" not in contents(tmp_path)
    assert encode(world, tmp_path, 0) == 0 and contents(tmp_path) == contents(world / "whole")


def test_a_number_of_readers_below_nought_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(world, world / "none", -1) == 2
    assert "--workers must be at least 0, found -1" in capsys.readouterr().err and not (world / "none").exists()


def test_a_writer_is_waited_for_once_its_queue_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, may_write, done = BackgroundWriter(ahead=2), threading.Event(), []
    wait = writer._wait
    monkeypatch.setattr(writer, "_wait", lambda: (may_write.set(), wait()))

    def write(number: int) -> None:
        assert may_write.wait(60)
        done.append(number)

    for number in range(2):
        writer.put(lambda number=number: write(number))
    assert not may_write.is_set() and done == []
    writer.put(lambda: write(2))  # would be a third in a queue of two
    assert may_write.is_set() and done[:1] == [0]
    writer.finish()
    assert done == [0, 1, 2]
    writer.put(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        writer.finish()
    writer.close()


def test_parts_on_a_gpu_are_timed_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"queued_ms": 0.0, "done": False, "waits": 0}

    class Mark:
        def __init__(self, enable_timing: bool) -> None:
            self.at_ms = -1.0

        def record(self) -> None:
            self.at_ms = now["queued_ms"]

        def query(self) -> bool:
            return bool(now["done"])

        def synchronize(self) -> None:
            now["waits"] += 1

        def elapsed_time(self, end: Mark) -> float:
            return end.at_ms - self.at_ms

    monkeypatch.setattr(clock.torch.cuda, "Event", Mark)
    parts, gpu = PartClock(["vae", "mel"]), torch.device("cuda")
    for part, milliseconds in (("mel", 10.0), ("vae", 250.0), ("vae", 500.0)):
        with parts.of(part, gpu):
            now["queued_ms"] += milliseconds
        now["queued_ms"] += 1000.0  # what lies between belongs to none
    assert parts.seconds == {"vae": 0.0, "mel": 0.0} and now["waits"] == 0
    parts.finish()
    assert parts.seconds == pytest.approx({"vae": 0.75, "mel": 0.01}) and now["waits"] == 3
    now["done"] = True
    with parts.of("mel", gpu):
        now["queued_ms"] += 40.0
    assert parts.seconds["mel"] == pytest.approx(0.05) and now["waits"] == 3, "what is done is counted on the way"


def item_of(world: Path) -> tuple[Encoder, WorkBatch]:
    data = SimpleNamespace(sample_rate_hz=RATE_HZ, clip_samples=SAMPLES)
    encoder = Encoder(Bundle.from_pretrained(world / "bundle"), SimpleNamespace(data=data))  # type: ignore[arg-type]
    waveform_BS = 0.1 * torch.randn(3, SAMPLES, generator=torch.Generator().manual_seed(0))
    return encoder, WorkBatch(WorkItem("train", Unit("shard", 0, 0, 4), 0, 3), waveform_BS)


def test_a_gpu_is_not_waited_for(world: Path) -> None:
    encoder, batch = item_of(world)
    device = install()
    encoder.to(device)
    sent = encoder.transfer_batch_to_device(batch, torch.device(device), 0)
    with torch.inference_mode():
        encoder.predict_step(sent, 0)  # sends tables of the resampler and of the towers
        with watching() as noted:
            encoder.predict_step(sent, 1)
    assert noted == []
    with watching() as noted:
        encoder.conditioner.audio(sent.waveform_BS, RATE_HZ)
    assert noted, "the check for NaN waits"


def test_bf16_is_for_networks_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does it, on the CPU's own autocast."""
    encoder, batch = item_of(world)
    assert batch.waveform_BS is not None
    with torch.no_grad():
        mel, expected = encoder.encoder.front(batch.waveform_BS), encoder.encode_audio(batch.waveform_BS)
        embedded = encoder.conditioner.audio(batch.waveform_BS, RATE_HZ)
        monkeypatch.setattr(encoder, "networks", lambda: torch.autocast("cpu", torch.bfloat16))
        seen = []
        moments = encoder.encoder.moments
        monkeypatch.setattr(encoder.encoder, "moments", lambda front: seen.append(front) or moments(front))
        encoder.predict_step(batch, 0)
    assert torch.equal(seen[0], mel)
    found = encoder._done[0]
    assert found["mean"].dtype == torch.bfloat16
    error = (found["mean"].float() - expected["mean"]).norm() / expected["mean"].norm()
    assert 1e-5 < error < 0.03
    cosine = torch.nn.functional.cosine_similarity(found["clap_audio"].float(), embedded)
    assert 1e-7 < float((1 - cosine).max()) < 2e-3


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_reader_that_is_killed_while_its_windows_are_fetched_is_named(error: Exception) -> None:
    with pytest.raises(MusiccmError, match=r"a process that reads audio was ended \(DataLoader worker: "), \
            reading.naming_lost_workers():
        raise error
