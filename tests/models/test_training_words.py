"""What captions speak of, counted, and prompts that are unlike all of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from musiccm.data.demo.captions import captions
from musiccm.data.demo.world import draw_attributes, track_rng
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.borrow import begin_bundle
from musiccm.models.bundle.caption_words import bpm_range, content_words, count_phrases, count_words
from musiccm.models.bundle.files import load_part, resolve_bundle, save_part
from musiccm.models.bundle.training_words import TrainingWords, words_folder, write_words
from musiccm.pipeline import Pipeline
from tests.tiny_bundle import build_random_bundle, make_unet
from tests.tiny_melody import build_random_melody
from tests.tiny_tokens import build_token_bundle

SPOKEN = [
    ["a calm grand piano melody over soft strings, 80 bpm", "grand piano melody"],
    ["Rock drums with two electric guitars, fast, 140 bpm", "a rock song on an electric guitar"],
    ["slow warm synthesizer pad, no drums", "a slow warm pad"],
]
HELD_OUT = ["a calm piano", "fast rock drums with a guitar", "slow strings, 90 bpm", "a warm pad melody"]


def test_words_and_phrases_are_counted_by_caption() -> None:
    texts = [text for of_clip in SPOKEN for text in of_clip]
    words = count_words(texts)
    assert words["piano"] == 2 and words["grand"] == 2 and words["rock"] == 2 and words["guitar"] == 2  # one a plural
    assert not {"a", "the", "80", "bpm", "with", "song"} & set(words)
    groups = count_phrases(texts)
    assert groups["instruments"] == {"grand piano": 2, "strings": 1, "electric guitar": 2,
                                     "warm synthesizer pad": 1}, "a longer phrase hides those within"
    assert groups["drums"] == {"rock drums": 1, "no drums": 1}
    assert groups["moods"] == {"calm": 1, "warm": 1} and groups["tempi"] == {"fast": 1, "slow": 2}
    assert groups["genres"] == {"rock": 1}, "rock drums are no genre"
    assert groups["other"]["pad"] == 1 and groups["other"]["soft"] == 1 and "drum" not in groups["other"]
    assert bpm_range(texts) == (80, 140, 2) and bpm_range(["no number"]) is None
    assert content_words("The SAXOPHONES, saxophone and 3 Über-drums at 90bpm") == [
        "saxophone", "über", "drum"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_random_bundle(tmp_path_factory.mktemp("words") / "bundle", frames=4, evaluators=False, decoder=True)
    write_words(folder, Bundle.from_pretrained(folder), SPOKEN, HELD_OUT, kept=5)
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_the_limit_is_the_quantile_of_held_out_distances(bundle: Path) -> None:
    about = json.loads((bundle / "words/words.json").read_text())
    texts = [text for of_clip in SPOKEN for text in of_clip]
    assert (about["clips"], about["captions"], len(about["examples"])) == (3, 6, 5)
    assert set(about["examples"]) < set(texts)
    conditioner = Bundle.from_pretrained(bundle).conditioner()
    kept, unseen = (torch.cat([conditioner.text([text]) for text in some]).numpy().astype(np.float64)
                    for some in (about["examples"], HELD_OUT))
    distances = 1 - (unseen @ kept.T).max(axis=1)
    assert about["threshold"] == pytest.approx(np.quantile(distances, 0.995), abs=1e-3)  # kept in half precision
    assert load_file(bundle / "words/captions.safetensors")["embedding"].dtype == torch.float16


def test_a_prompt_is_unfamiliar_by_its_words_or_its_distance(copy: Path) -> None:
    about = json.loads((copy / "words/words.json").read_text())
    (copy / "words/words.json").write_text(json.dumps(about | {"threshold": 2.0}))
    pipeline = Pipeline.from_pretrained(copy)
    said = ["a calm piano melody", "heavy metal riff on a guitar", "Piano, cello", "music", "calm slow sad piano"]
    found = pipeline.unfamiliar(said)
    assert [None if one is None else one.unknown for one in found] == [
        None, ("heavy", "metal", "riff"), ("cello",), None, None], "half of the content words, or more"
    told = str(found[1])
    assert "'heavy metal riff on a guitar'" in told and "'heavy', 'metal' or 'riff'" in told
    assert pipeline.words is not None and len(found[1].nearest) == 3
    conditioner = Bundle.from_pretrained(copy).conditioner()
    cosines = conditioner.text([said[1]]) @ torch.cat([conditioner.text([text]) for text in pipeline.words.examples]).T
    assert found[1].nearest == tuple(pipeline.words.examples[int(i)] for i in cosines[0].topk(3).indices)
    (copy / "words/words.json").write_text(json.dumps(about | {"threshold": 0.0}))
    far = Pipeline.from_pretrained(copy).unfamiliar("a calm piano melody")[0]
    assert far is not None and far.distance > 0 and "further from all training captions" in str(far)
    with pytest.raises(MusiccmError, match="prompt 1 of 1"):
        pipeline.unfamiliar(" ")


@pytest.mark.parametrize(("said", "unknown"), [
    ("a calm slow piano with a soft, fast cello", ("cello",)),  # an instrument that nobody names, however much is known
    ("relaxing piano", None),  # a mood beside what is known
    ("relaxing", ("relaxing",)),
    ("please give me a beautiful piano, 120bpm", None),  # what asks, and numbers
])
def test_names_weigh_more_than_moods_and_politeness(copy: Path, said: str, unknown: tuple[str, ...] | None) -> None:
    about = json.loads((copy / "words/words.json").read_text())
    (copy / "words/words.json").write_text(json.dumps(about | {"threshold": 2.0}))
    (found,) = Pipeline.from_pretrained(copy).unfamiliar(said)
    assert (None if found is None else found.unknown) == unknown


def test_what_is_said_of_a_long_prompt_is_short(copy: Path) -> None:
    (found,) = Pipeline.from_pretrained(copy).unfamiliar(" ".join(f"zork{chr(97 + i)}" for i in range(20)))
    assert found is not None and len(found.unknown) == 20
    assert "or 16 other words of it" in str(found) and len(str(found).split("It is nearest")[0]) < 250


def test_tokens_are_compared_by_their_mean(tmp_path: Path) -> None:
    folder = build_token_bundle(tmp_path / "tokens")
    about = write_words(folder, Bundle.from_pretrained(folder), SPOKEN, HELD_OUT)
    words = TrainingWords.of(Bundle.from_pretrained(folder))
    assert words is not None and words.limit == about["threshold"] > 0
    conditioner = Bundle.from_pretrained(folder).conditioner()
    state = conditioner.text([words.examples[2]])
    mean = state.tokens_BLD[state.mask_BL].mean(0)
    assert torch.allclose(mean / mean.norm(), words.embedding_ND[2], atol=2e-3)
    assert words.unfamiliar(conditioner, ["heavy metal", "a piano"])[0].unknown == ("heavy", "metal")


def test_a_model_that_draws_tokens_is_asked_how_it_reads_a_prompt(tmp_path: Path) -> None:
    melody = build_random_melody(tmp_path)
    lender = Bundle.from_pretrained(tmp_path / "base")
    write_words(tmp_path / "base", lender, SPOKEN, HELD_OUT, kept=5)
    pipeline = Pipeline.from_pretrained(melody)
    said = ["heavy metal", "a calm piano melody"]
    assert pipeline.unfamiliar(said) == Pipeline.from_pretrained(tmp_path / "base").unfamiliar(said)
    assert pipeline.conditioner.written == 0, "nothing was planned to know it"


def test_who_borrows_the_text_encoder_borrows_its_words(bundle: Path, tmp_path: Path) -> None:
    teacher = Bundle.from_pretrained(bundle)
    shutil.copytree(bundle, tmp_path / "teacher")
    info = StudentInfo("v_prediction", 3.0)
    lender = Bundle.from_pretrained(tmp_path / "teacher")
    borrowing = export_student(make_unet(frames=4), lender, tmp_path / "a", info, base="../teacher")
    whole = export_student(make_unet(frames=4), teacher, tmp_path / "b", info)
    for student in (borrowing, whole):
        assert Pipeline.from_pretrained(student).unfamiliar("heavy metal")[0] is not None
    assert not (borrowing / "words").exists() and (whole / "words").is_dir()
    begin_bundle(tmp_path / "stages", "../teacher")
    began = Bundle.from_pretrained(tmp_path / "stages", parts=())
    save_part(tmp_path / "stages", "text_encoder", load_part(bundle, "text_encoder"))
    assert words_folder(began) is None, "they were embedded by another text encoder"


def read(folder: Path) -> None:
    """Read and check the words of a bundle, as a pipeline does."""
    bundle = Bundle.from_pretrained(folder, parts=())
    words = TrainingWords.of(bundle)
    assert words is not None
    words.check(bundle.conditioner())


def test_files_that_are_wrong_are_refused_by_name(copy: Path) -> None:
    path, about = copy / "words/words.json", json.loads((copy / "words/words.json").read_text())
    for key, value in (("schema", 9), ("threshold", "far"), ("examples", ["one"]), ("words", ["piano"]),
                       ("groups", {"x": ["y"]}), ("bpm", [1]), ("clips", None)):
        path.write_text(json.dumps(about | {key: value}))
        with pytest.raises(MusiccmError, match=rf"words\.json: {key} is .*musiccm pack words --to"):
            read(copy)
    path.write_text(json.dumps(about | {"examples": about["examples"][:3]}))
    with pytest.raises(MusiccmError, match=r"captions\.safetensors: expected a finite row for each of the 3"):
        read(copy)
    path.write_text(json.dumps(about))
    weights = copy / "words/captions.safetensors"
    save_file({"embedding": torch.nn.functional.normalize(torch.randn(5, 32)).half()}, weights)
    with pytest.raises(MusiccmError, match="embedded by another text encoder"):
        read(copy)
    weights.write_bytes(b"nothing")
    with pytest.raises(MusiccmError, match=r"captions\.safetensors: cannot be read"):
        read(copy)
    weights.unlink()
    weights.symlink_to("/etc/hostname")
    with pytest.raises(MusiccmError, match="is a link to"):
        read(copy)
    shutil.rmtree(copy / "words")
    assert Pipeline.from_pretrained(copy).unfamiliar(["heavy metal", "b"]) == [None, None]
    with pytest.raises(MusiccmError, match="at least 3 different captions"):
        write_words(copy, Bundle.from_pretrained(copy), [["a"], ["b"]], HELD_OUT)


@pytest.mark.parametrize(("name", "drums_alone"), [("musiccm-tiny", False), ("musiccm-tiny-tango", True)])
def test_the_packaged_bundles_know_their_world(name: str, drums_alone: bool) -> None:
    folder = resolve_bundle(name)
    assert sum(file.stat().st_size for file in (folder / "words").iterdir()) < 300_000
    bundle = Bundle.from_pretrained(name)
    words, conditioner = TrainingWords.of(bundle), bundle.conditioner()
    assert words is not None
    words.check(conditioner)
    strange = words.unfamiliar(conditioner, ["heavy metal guitar riff", "lullaby", "silence", "sad cello",
                                             "a choir singing hallelujah", "drums only"])
    assert [one is not None for one in strange] == [True] * 5 + [not drums_alone]
    if name == "musiccm-tiny":
        texts = []
        for index in range(128):
            rng = track_rng(9, "validation", index)
            texts.append(captions(draw_attributes(rng), rng)[index % 4])
        assert sum(one is not None for one in words.unfamiliar(conditioner, texts)) <= 5
        assert not any(words.unknown(text) for text in texts)
        # What the README promises of this model and, by its name, of the other one.
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        lines = [line for line in readme.splitlines() if line.startswith("musiccm generate") and "tango" not in line]
        asked = [text for line in lines for text in re.findall(r'"([^"]+)"', line)]
        assert len(asked) > 8 and words.unfamiliar(conditioner, asked) == [None] * len(asked)
        assert not any("bpm" in text for text in asked), "the CLAP vector carries no number of beats"
