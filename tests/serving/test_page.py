"""The page's files: how they are served, that they speak to the API alone; and the evidence on a result."""

from __future__ import annotations

import configparser
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tiny_bundle import build_random_bundle, build_random_student

from musiccm.audio.io import write_audio
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SETTINGS_FILE, update_json
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, MusicRequest, ServedModel
from musiccm.serving.evidence import EvidenceOf
from musiccm.serving.http.app import make_app
from musiccm.serving.http.gate import Keys
from musiccm.serving.http.metrics import Metrics
from musiccm.serving.http.page import FOLDER, page_files
from musiccm.similarity.check import check_plagiarism
from musiccm.similarity.indexing import index_folder
from musiccm.texts import read_json

ROOT = Path(__file__).parents[2]
KEY = "k" * 32
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js")}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name that nothing fetches


class Markup(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


MARKUP = Markup((FOLDER / "index.html").read_text(encoding="utf-8"))


def opened(engine: Engine, keys: list[str] | None = None, page: bool = True) -> TestClient:
    app = make_app(engine, Metrics(), Keys(keys or []), page=page)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def engine(served: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine([served], tmp_path_factory.mktemp("engine")) as engine:
        yield engine


def test_every_file_is_served_under_a_policy_that_lets_nothing_else_in(engine):
    client = opened(engine)
    for path in page_files():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.content, path
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
        assert not re.search(r"unsafe|\*|https?:|data:", answer.headers["content-security-policy"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert answer.headers["content-type"].startswith(kinds.get(path.rpartition(".")[2], "text/html"))
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head(path).status_code == 200


def test_no_other_file_can_be_had(engine):
    client = opened(engine)
    for path in ("/page/", "/page/engine.py", "/page/../engine.py", "/page/%2e%2e/engine.py", "/page//etc/passwd",
                 "/page/index.html"):
        assert client.get(path).status_code == 404, path


def test_the_page_needs_no_key_and_what_it_asks_for_does(engine):
    client = opened(engine, [KEY])
    assert {client.get(path).status_code for path in page_files()} == {200}
    assert client.get("/v1/models").status_code == client.get("/v1/jobs/x/evidence").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_it_can_be_left_out(engine):
    assert opened(engine, page=False).get("/").status_code == 404


def test_nothing_is_asked_of_others_and_nothing_is_inline():
    known = page_files()
    for name in (*known, "/page/index.html"):
        text = (FOLDER / Path(name).name).read_text(encoding="utf-8") if name != "/" else ""
        assert re.findall(r"(?:https?:|wss?:)?//[\w.-]+\.\w{2,}[^\s\"'`]*", text.replace(NAMESPACE, "")) == [], name
    for tag, attributes in MARKUP.tags:
        assert tag != "style" and "style" not in attributes and not any(name.startswith("on") for name in attributes)
        assert tag != "script" or attributes.get("src")
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or target in known, target
    for name, text in SCRIPTS.items():
        imported = re.findall(r"^(?:import|export) .*?\"(\./[\w.]+)\";$|^import \"(\./[\w.]+)\";$", text, flags=re.M)
        assert {one or other for one, other in imported} <= {f"./{script}" for script in SCRIPTS}, name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
    assert "url(" not in (FOLDER / "style.css").read_text(encoding="utf-8")


def test_every_path_that_it_asks_for_is_in_openapi(engine):
    described = opened(engine).get("/openapi.json").json()["paths"]
    paths = {re.sub(r"\{[^}]*\}", "{}", path): methods for path, methods in described.items()}
    asked = {found for text in SCRIPTS.values() for found in re.findall(r"[\"`](/(?:v1|health)[^\"`]*)[\"`]", text)}
    assert len(asked) > 10
    for path in asked:
        plain, _, query = path.partition("?")
        methods = paths[re.sub(r"\$\{[^}]*\}", "{}", plain)]
        for name in re.findall(r"(\w+)=", query):
            assert name in {one["name"] for one in methods["get"]["parameters"]}, path


def test_every_element_that_the_scripts_name_is_there():
    ids = {attributes["id"] for _, attributes in MARKUP.tags if attributes.get("id")}
    made = {found for text in SCRIPTS.values() for found in re.findall(r"\bid: \"([\w-]+)\"", text)}
    named = {found for text in SCRIPTS.values() for found in re.findall(r"\$\(\"([\w-]+)\"\)", text)}
    assert len(named) > 20 and named <= ids | made
    referred = {target for _, attributes in MARKUP.tags for name in ("for", "aria-labelledby", "aria-describedby",
                "aria-controls") for target in (attributes.get(name) or "").split()}
    assert referred <= ids


def test_the_package_brings_every_file():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    package = ROOT / "src/musiccm"
    packed = {path for pattern in config["options.package_data"]["musiccm"].split() for path in package.glob(pattern)}
    assert {path for path in FOLDER.iterdir() if path.is_file()} <= packed
    shown = {Path(path).name for path in page_files() if path != "/"}
    assert {path.name for path in FOLDER.iterdir()} == shown | {"index.html"}


def test_a_job_says_how_long_the_device_worked_for_it(engine):
    view = engine.wait(engine.submit(MusicRequest("student", ((0.0, "a bass"),), steps=2, seed=0)).id)
    assert view.result is not None and view.finished_s is not None and view.started_s is not None
    assert 0 < view.result["device_s"] <= view.finished_s - view.started_s


def test_a_student_and_its_teacher_are_told_by_what_they_share(tmp_path):
    student = build_random_student(tmp_path)
    other = build_random_bundle(tmp_path / "other", frames=4, seed=1, evaluators=False)
    update_json(student / SETTINGS_FILE, {"distillation": {
        **read_json(student / SETTINGS_FILE, "")["distillation"], "recipe": {"teacher": "runs/of/mine/teacher"}}})
    models = {path.name: ServedModel.of(path.name, Pipeline.from_pretrained(path))
              for path in (student, tmp_path / "teacher", other)}
    with Engine(list(models.values()), tmp_path / "engine") as engine:
        told = {model["id"]: model["facts"] for model in opened(engine).get("/v1/models").json()["data"]}
    assert told["student"]["shared_hash"] == told["teacher"]["shared_hash"] != told["other"]["shared_hash"]
    assert models["student"].content_hash != models["teacher"].content_hash
    assert told["student"]["teacher"] == "teacher" and "teacher" not in told["teacher"]
    shutil.rmtree(student / "vae")
    shutil.copytree(other / "vae", student / "vae")  # another autoencoder: latents of another meaning
    facts = ServedModel.of("student", Pipeline.from_pretrained(student)).facts
    assert facts["shared_hash"] not in (told["teacher"]["shared_hash"], told["other"]["shared_hash"])


def test_a_student_states_its_teacher_where_two_have_the_same_frozen_parts(tmp_path):
    student = build_random_student(tmp_path)
    second = tmp_path / "second"
    shutil.copytree(tmp_path / "teacher", second)
    weights = second / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    taught = Bundle.from_pretrained(second).denoiser_hash()
    update_json(student / SETTINGS_FILE, {"distillation": {
        **read_json(student / SETTINGS_FILE, "")["distillation"], "recipe": {"teacher": None, "teacher_hash": taught}}})
    told = {path.name: ServedModel.of(path.name, Pipeline.from_pretrained(path)).facts
            for path in (student, tmp_path / "teacher", second)}
    assert told["student"]["shared_hash"] == told["teacher"]["shared_hash"] == told["second"]["shared_hash"]
    assert told["student"]["teacher_hash"] == told["second"]["denoiser_hash"] != told["teacher"]["denoiser_hash"]
    assert "teacher" not in told["student"] and "teacher_hash" not in told["second"]


def test_evidence_is_what_the_plagiarism_check_and_clap_say(tmp_path):
    student = build_random_student(tmp_path / "bundles")
    bundle = Bundle.from_pretrained(student)
    teacher = bundle.root_of("text_encoder")
    rate = bundle.mel.sample_rate_hz
    noise = torch.Generator().manual_seed(0)
    (tmp_path / "training").mkdir()
    for number in range(4):
        time_s = torch.arange(3 * rate) / rate
        wave = torch.sin(2 * torch.pi * 110 * 2**number * time_s) + 0.3 * torch.randn(len(time_s), generator=noise)
        write_audio(tmp_path / f"training/{number}.wav", 0.3 * wave, rate)
    index_folder(teacher / "training_index", tmp_path / "training", str(teacher))

    text = "a fast marimba tune"
    with Engine([ServedModel.of("student", Pipeline.from_pretrained(student))], tmp_path / "engine") as engine:
        view = engine.wait(engine.submit(MusicRequest("student", ((0.0, text),), seconds=2.0, steps=1, seed=1)).id)
        assert view.state == "done", view.error
        answer = opened(engine).get(f"/v1/jobs/{view.id}/evidence")
        samples = engine.results.samples(view.id)
    found = answer.json()
    assert answer.status_code == 200 and found["training_clips"] == 4 and found["notes"] == []

    (tmp_path / "made").mkdir()
    (tmp_path / "made/clip.wav").write_bytes(samples.read_bytes())
    report = check_plagiarism(tmp_path / "made", teacher / "training_index", tmp_path / "report", bundle=str(student),
                              train_clips=0, device="cpu")
    nearest = report["clips"][0]["nearest"][0]
    assert found["nearest"]["clip"] == nearest["id"]
    assert found["nearest"]["cosine"] == pytest.approx(nearest["cosine"], abs=1e-6)

    import soundfile

    clap = Bundle.from_pretrained(student).conditioner().eval()
    wave_S = torch.from_numpy(soundfile.read(samples, dtype="float32")[0])
    wave_S = wave_S - wave_S.mean()
    wave_S = 0.5 * wave_S / wave_S.abs().max()
    windows = torch.stack([wave_S[at : at + rate] for at in (0, rate // 2, rate)])
    with torch.no_grad():
        cosine = torch.cosine_similarity(clap.audio(windows, rate), clap.text([text])).mean()
    assert found["text_audio"] == pytest.approx(float(cosine), abs=1e-4)


def test_evidence_says_what_the_bundle_lacks(engine, served, tmp_path):
    view = engine.wait(engine.submit(MusicRequest("student", ((0.0, "a bass"),), seconds=1.5, steps=1, seed=0)).id)
    found = EvidenceOf(engine)(view)
    assert found.text_audio is not None and found.nearest is None
    assert found.notes == ["student does not bring an index of its training clips: no nearest one"]

    class Foreign:
        """A model of another kind, without a bundle."""

        bundle = None

        def __getattr__(self, name: str) -> object:
            return getattr(served.model, name)

    with Engine([ServedModel.of("other", Foreign())], tmp_path) as other:  # type: ignore[arg-type]
        view = other.wait(other.submit(MusicRequest("other", ((0.0, "a bass"),), steps=1, seed=0)).id)
        assert view.state == "done", view.error
        answer = opened(other).get(f"/v1/jobs/{view.id}/evidence").json()
    assert answer["text_audio"] is None and answer["nearest"] is None
    assert answer["notes"] == ["other brings no CLAP with text and audio: neither text-audio score nor nearest "
                               "training clip"]


def test_evidence_names_the_extra_that_it_needs(engine, monkeypatch):
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics")

    monkeypatch.setattr("musiccm.serving.evidence._measure_of", missing)
    view = engine.wait(engine.submit(MusicRequest("student", ((0.0, "a bass"),), steps=1, seed=0)).id)
    assert EvidenceOf(engine)(view).notes == [
        'evidence needs torchmetrics, which is not installed: pip install "musiccm[eval]"']


def test_evidence_waits_for_the_result(engine):
    client = opened(engine)
    job = client.post("/v1/jobs", json={"prompt": "a bass", "steps": 8, "seconds": 60}).json()["id"]
    assert client.get(f"/v1/jobs/{job}/evidence").status_code == 409
    engine.cancel(job)
    assert client.get("/v1/jobs/none/evidence").status_code == 404
