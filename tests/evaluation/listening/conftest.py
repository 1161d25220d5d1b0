"""Two systems and real clips of a second or so, and the listening tests that the command makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from musiccm.cli import main
from tests.listening_clips import CLIPS, SYSTEMS, clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for place, (name, rate_hz, level) in enumerate(SYSTEMS):
        (root / name / "deep").mkdir(parents=True)
        for n in range(CLIPS):
            samples = clip(n + 100 * place, rate_hz, 1.2 + 0.1 * n + 0.2 * place, level)
            soundfile.write(root / name / "deep" / f"clipcalled{n}.flac", samples, rate_hz)
    texts = {f"deep/clipcalled{n}": f"tune <b>{n}</b> with \"drums\" & </script>" for n in range(CLIPS)}
    (root / "captions.json").write_text(json.dumps(texts))
    return root


@pytest.fixture(scope="session")
def preference(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tests") / "preference"
    assert main(["listen", "--a", str(clips / "teacherfifty"), "--b", str(clips / "studentfour"), "--captions",
                 str(clips / "captions.json"), "--out", str(out), "--per-listener", "4", "--seed", "7"]) == 0
    return out


@pytest.fixture(scope="session")
def rating(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tests") / "rating"
    assert main(["listen", "--kind", "rating", "--a", str(clips / "teacherfifty"), "--b", str(clips / "studentfour"),
                 "--reference", str(clips / "realmusic"), "--captions", str(clips / "captions.json"), "--out", str(out),
                 "--clips", "5", "--anchors", "2", "--checks", "1", "--equal", "1", "--format", "wav"]) == 0
    return out
