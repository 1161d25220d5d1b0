"""What does not fit a model or the clip of an edit is refused when it is asked for, and not once it is at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gated import asked
from starlette.testclient import TestClient
from tiny_tokens import build_token_bundle

from musiccm.audio.io import write_audio
from musiccm.errors import MusiccmError
from musiccm.long_form import ClipLength, read_clip
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, Limits, MusicRequest, ServedModel
from musiccm.serving.http.app import make_app
from musiccm.serving.http.gate import Keys
from musiccm.serving.http.metrics import Metrics

LONG = "a calm piano melody " * 20
FINE = "slow organ chords"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model that reads at most 64 tokens of a text."""
    return Pipeline.from_pretrained(build_token_bundle(tmp_path_factory.mktemp("tokens") / "bundle"))


@pytest.fixture
def reads(make_engine, reader: Pipeline) -> Iterator[Engine]:
    yield make_engine(models=[ServedModel.of("reader", reader)])


def brought(engine: Engine, path: Path, seconds: float, rate_hz: int = 22050) -> str:
    write_audio(path, torch.sin(torch.arange(round(seconds * rate_hz)) / 9) / 2, rate_hz)
    part = engine.new_upload()
    part.write_bytes(path.read_bytes())
    return engine.add_upload(part)["id"]


@pytest.mark.parametrize("fields", [
    {}, {"seconds": 2.0}, {"task": "compose", "seconds": 2.0, "prompts": ((0.0, FINE), (1.0, LONG))},
    {"task": "continue"}, {"task": "continue", "seconds": 2.0}, {"task": "vary"},
    {"task": "inpaint", "from_s": 0.2, "to_s": 0.4},
])
def test_a_text_that_is_longer_than_the_model_reads(reads, reader, tmp_path, fields):
    if fields.get("task", "compose") != "compose":
        fields = {**fields, "source": brought(reads, tmp_path / "clip.wav", 0.8)}
    request = MusicRequest("reader", **{"prompts": ((0.0, LONG),), "steps": 1, **fields})
    found = len(reader.conditioner.tokenizer(LONG).input_ids)
    client = TestClient(make_app(reads, Metrics(), Keys([])), base_url="http://127.0.0.1")
    field = "prompt" if len(request.prompts) == 1 else "prompts.1.text"
    with pytest.raises(MusiccmError, match=f"^{field}: expected at most 64 tokens, .* found {found} in 'a calm"):
        reads.submit(request)
    assert reads.jobs() == [] and list((reads.folder / "sources").iterdir()) == []
    entries = [{"at": at, "text": text} for at, text in request.prompts]
    names = {"from_s": "from", "to_s": "to"}
    body = {names.get(name, name): value for name, value in fields.items() if name != "prompts"}
    answer = client.post("/v1/jobs", json={"prompts": entries, "steps": 1, **body})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == f"prompts.{len(entries) - 1}.text"


def test_a_stream_plays_on_as_planned_where_its_new_text_is_too_long(reads, reader):
    with pytest.raises(MusiccmError, match="^prompt: expected at most 64 tokens"):
        reads.stream(MusicRequest("reader", ((0.0, LONG),), steps=1))
    client = TestClient(make_app(reads, Metrics(), Keys([])), base_url="http://127.0.0.1")
    stream = reads.stream(MusicRequest("reader", ((0.0, FINE),), seconds=8.0, steps=1, seed=3, level="none"))
    first = stream.take(30)
    answer = client.post(f"/v1/jobs/{stream.job.id}/prompt", json={"prompt": LONG})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "prompt"
    whole = torch.cat([first, *stream])
    assert reads.wait(stream.job.id).state == "done"
    torch.testing.assert_close(whole, reader.compose(FINE, 8.0, 1, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("fields", "said"), [
    ({"task": "continue", "seconds": 0.7}, "seconds: the clip lasts 0.80 s already"),
    ({"task": "continue"}, "seconds: expected up to 1 of clip and continuation together, found 1.44"),
    ({"task": "continue", "seconds": 1.0, "prompts": ((0.0, FINE), (2.0, "drums"))}, "prompts: 'drums' .* would not"),
    ({"task": "continue", "seconds": 1.0, "prompts": ((0.0, FINE), (0.1, "drums"), (0.11, "bass"))},
     "prompts: .* would not be used"),
    ({"task": "inpaint", "from_s": 0.5, "to_s": 0.9}, "from, to: expected 0 <= from < to <= 0.80 s, the length of the"),
    ({"task": "inpaint", "from_s": 0.0, "to_s": 0.8}, "from, to: .* leaves nothing of the clip"),
    ({"task": "vary", "prompts": ((0.0, FINE), (0.8, "drums"))}, "prompts: 'drums' .* the music ends at 0.8 s"),
])
def test_an_edit_that_does_not_fit_its_clip(make_engine, tmp_path, fields, said):
    engine = make_engine(limits=Limits(max_seconds=1.0))
    clip = brought(engine, tmp_path / "clip.wav", 0.8)
    made = engine.wait(engine.submit(dataclasses.replace(asked(steps=1), seconds=0.8)).id)
    for source in (clip, made.id):  # an upload, and what a job made
        with pytest.raises(MusiccmError, match=f"^{said}"):
            engine.submit(dataclasses.replace(asked(steps=1), **{"source": source, **fields}))
    assert [view.id for view in engine.jobs()] == [made.id]
    assert list((engine.folder / "sources").iterdir()) == []


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
def test_the_length_that_a_header_states_is_that_of_the_clip(make_engine, pipeline, tmp_path, rate_hz):
    """So that no edit is refused that would have been made."""
    engine, path = make_engine(start=False), tmp_path / "clip.flac"
    source = brought(engine, path, 0.777, rate_hz)
    clip = read_clip(pipeline, path)
    assert engine._source_length(source, "") == (clip.original.samples, rate_hz)
    assert ClipLength.of(pipeline, clip.original.samples, rate_hz, str(path)) == clip.length
