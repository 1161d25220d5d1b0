"""The programs of deploy/ before their replicas begin; and that the image's recipe fits the repository."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from starlette.testclient import TestClient

from musiccm.commands import serve
from musiccm.errors import MusiccmError

DEPLOY = Path(__file__).parents[2] / "deploy"


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program as a module; its name is its library's, too."""
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr("sys.path", [str(DEPLOY), *sys.path])  # as it is where the file is run
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nobody_else_on_the_machine_is_answered_by_workers(monkeypatch):
    pytest.importorskip("litserve", reason="LitServe is not installed")
    lit = program("litserve", monkeypatch)
    args = lit.parser().parse_args(["--replicas", "3", "--device", "cpu"])
    workers = lit.Workers(args)
    assert (workers.count, workers.on_gpu) == (3, False)
    client = TestClient(workers._server.app)
    for headers in ({}, {lit.KEY_HEADER: "x"}):
        assert client.get("/health", headers=headers).status_code == 401
        assert client.post(lit.PATH, content=b"?", headers=headers).status_code == 401


def loaded_by_replicas(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What a program's replica asks `load_model` for."""
    module, asked = program(name, monkeypatch), []
    monkeypatch.setattr(module, "load_model", lambda *given, compiled: asked.append((*given, compiled)))
    monkeypatch.setattr(module, "Replica", list)
    monkeypatch.setattr("musiccm.signals.in_worker", lambda: None)
    args = module.parser().parse_args(["--device", "cpu", *options])
    if name == "litserve":
        module.Workers(args)._server.litapi_connector.lit_apis[0].setup("cpu")
    else:
        bound = []
        monkeypatch.setattr(module.ray, "init", lambda **_: None)
        monkeypatch.setattr(module.serve, "start", lambda **_: None)
        monkeypatch.setattr(module.serve, "run", lambda target, **_: target)
        monkeypatch.setattr(module.serve, "deployment", lambda kind, **_: SimpleNamespace(
            bind=lambda *given: bound.append(kind(*given))))
        assert module.Replicas(args)._handle is None and len(bound) == 1
    return asked


@pytest.mark.parametrize(("name", "library"), [("litserve", "litserve"), ("ray_serve", "ray.serve")])
def test_replicas_load_what_was_compiled(name, library, monkeypatch, tmp_path):
    pytest.importorskip(library, reason="it is not installed")
    monkeypatch.chdir(tmp_path)
    options = ["--model", "a=first", "--model", "b=second", "--model", "third", "--half", "--compiled", "b=two",
               "--compiled", "/one"]
    assert loaded_by_replicas(name, options, monkeypatch) == [
        ("a=first", "cpu", None, True, None, Path("/one")), ("b=second", "cpu", None, True, None, tmp_path / "two"),
        ("third", "cpu", None, True, None, None)]
    with pytest.raises(MusiccmError, match="leave out one of the two"):
        program(name, monkeypatch).main(["--compiled", "x", "--compile", "inductor", "--port", "0"])
    assert list(tmp_path.iterdir()) == []


def test_a_worker_is_begun_anew_while_questions_come(monkeypatch):
    """By LitServe's own monitor, to whose table of questions its server adds one on another thread meanwhile."""
    pytest.importorskip("litserve", reason="LitServe is not installed")
    lit = program("litserve", monkeypatch)
    server = lit.Workers(lit.parser().parse_args(["--device", "cpu"]))._server
    begun = threading.Event()

    class Asked:
        worker_id, response_queue = 0, None

        def __init__(self) -> None:
            self.event = threading.Event()

        def __getattribute__(self, name: str) -> object:
            server.response_buffer[f"later {len(server.response_buffer)}"] = SimpleNamespace(worker_id=None)
            return object.__getattribute__(self, name)

    def begin(*_: object) -> SimpleNamespace:
        server._shutdown_event.set()
        begun.set()
        return SimpleNamespace(is_alive=lambda: True)

    server.response_buffer["first"], server.response_buffer["second"] = asked = Asked(), Asked()
    server.inference_workers, server._shutdown_event = [SimpleNamespace(is_alive=lambda: False)], threading.Event()
    monkeypatch.setattr(server, "launch_single_inference_worker", begin)
    server._start_worker_monitoring(None, {})
    assert begun.wait(10) and all(one.event.is_set() for one in asked)


@pytest.mark.parametrize(("name", "library"), [("litserve", "litserve"), ("ray_serve", "ray.serve")])
def test_a_model_that_is_not_there_is_told_before_replicas_begin(name, library, monkeypatch, tmp_path):
    pytest.importorskip(library, reason="it is not installed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MusiccmError, match="no-such"):
        program(name, monkeypatch).main(["--model", "no-such", "--port", "0"])
    assert list(tmp_path.iterdir()) == []


def test_fewer_replicas_than_the_least_are_refused(monkeypatch):
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    with pytest.raises(MusiccmError, match="--max-replicas 2: expected at least --replicas, 3"):
        program("ray_serve", monkeypatch).main(["--replicas", "3", "--max-replicas", "2", "--port", "0"])


def test_the_image_is_made_of_what_is_there():
    recipe = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    copied = [source for line in re.findall(r"^COPY (.*)$", recipe, re.M) for source in line.split()[:-1]]
    assert {"src", "experiments", "setup.cfg"} <= set(copied)
    assert all((DEPLOY.parent / source).exists() for source in copied), copied
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", recipe, re.M)
    program, command, *options = json.loads(entry)
    args = serve._parser().parse_args(options)
    (volume,) = re.findall(r"^VOLUME (.*)$", recipe, re.M)
    assert (program, command, str(args.folder)) == ("musiccm", "serve", volume)
    assert f"127.0.0.1:{args.port}/ready" in recipe and args.key_file.is_absolute() and not args.public
    assert recipe.index("USER musiccm") < recipe.index("ENTRYPOINT")
