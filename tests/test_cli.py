import argparse
import errno
import os
import subprocess
import sys

import pytest

from musiccm import __version__, cli, commands
from musiccm.errors import MusiccmError


def raising(error: BaseException):
    def load(name):
        def run(argv):
            raise error

        return run

    return load


@pytest.fixture
def failing(monkeypatch):
    def _failing(error: BaseException) -> int:
        monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
        monkeypatch.setattr(commands, "summaries", lambda: {"break": "fail"})
        monkeypatch.setattr(commands, "load", raising(error))
        return cli.main(["break"])

    return _failing


def test_help_and_usage_errors_never_load_torch(tmp_path):
    code = f"""if True:
        import sys
        from musiccm.cli import main
        calls = [["--help"], ["--version"], [], ["fti"], ["fit"], ["test", "-c", {str(tmp_path / "no.yaml")!r}],
                 ["fit", "--help"]]
        print([main(call) for call in calls], "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 2, 2, 2, 0] False", done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, summary in commands.summaries().items():
        assert name in shown and summary in shown and summary
    assert {"fit", "validate", "test"} <= set(commands.summaries())
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_only_modules_with_main_are_commands(tmp_path, monkeypatch):
    (tmp_path / "hum.py").write_text('"""Hum a tune.\n\nMore."""\ndef main(argv: list[str]) -> int:\n    return 0\n')
    (tmp_path / "helper.py").write_text('"""Not a command."""\n')
    (tmp_path / "_private.py").write_text("def main(argv): ...\n")
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "__init__.py"))
    assert {k: v for k, v in commands.summaries().items() if k not in commands.TRAINER_COMMANDS} == {
        "hum": "Hum a tune"
    }


def test_every_listed_command_can_be_loaded():
    for name in commands.summaries():
        assert callable(commands.load(name))


def test_unknown_command_suggests_a_near_one(capsys):
    assert cli.main(["tset"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MusiccmError("corpus/x.flac is empty"), 2, "musiccm: corpus/x.flac is empty\n"),
        (argparse.ArgumentError(None, "no such key"), 2, "no such key"),
        (OSError(errno.ENOSPC, "No space left on device", "out.wav"), 2, "disk is full while writing out.wav"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "runs: Permission denied"),
        (ModuleNotFoundError("Requirement 'wandb>=1' not met. HINT: Try running `pip install -U 'wandb>=1'`"), 2,
         "`pip install -U 'wandb>=1'`, or leave out what needs it\n"),
        (KeyError("lost"), 1, "KeyError: 'lost' (in run, "),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_one_message(failing, capsys, error, code, said):
    assert failing(error) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_a_cause_that_the_user_can_mend_comes_first(failing, capsys):
    wrapped = RuntimeError("could not build the model")
    wrapped.__cause__ = MusiccmError("bundle/unet is missing")
    assert failing(wrapped) == 2
    assert capsys.readouterr().err == "musiccm: bundle/unet is missing\n"


def test_exit_codes_of_parsers_pass_through(failing):
    assert failing(SystemExit(2)) == 2
    assert failing(SystemExit(None)) == 0
    assert failing(SystemExit("words")) == 1


def test_debug_shows_the_traceback(failing, monkeypatch):
    monkeypatch.setattr(commands, "summaries", lambda: {"break": "fail"})
    monkeypatch.setattr(commands, "load", raising(KeyError("lost")))
    monkeypatch.setenv("MUSICCM_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["break"])


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "musiccm", "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_folder_that_was_removed_meanwhile_is_named(tmp_path):
    gone = tmp_path / "run" / "events"
    for name in (str(gone), os.fsencode(gone)):
        error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        message, code = cli.describe(error)
        assert code == 2
        assert message.startswith(f"{gone}: its folder {gone.parent} is not there")
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsencode(tmp_path / "x"))
    assert cli.describe(missing) == (f"{tmp_path / 'x'}: No such file or directory", 1)


@pytest.mark.parametrize(("module", "command", "extra"), [
    ("timm", "evaluate", "eval"), ("timm.models", "fit", "train"), ("librosa", "fit", "eval"),
    ("pytorch_lightning", "evaluate", "train"), ("faiss", "plagiarism", "faiss"),
])
def test_a_library_that_is_missing_is_answered_with_what_to_install(module, command, extra):
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    message, code = cli.describe(error, command)
    assert message == f'{command} needs {module.partition(".")[0]}, which is not installed: ' \
                      f'pip install "musiccm[{extra}]"'
    assert code == 2
    wrapped = ValueError("the parser's own words")
    wrapped.__cause__ = error
    assert cli.describe(wrapped, command) == (message, 2)
    assert cli.describe(ModuleNotFoundError("No module named 'mine'", name="mine"), command)[1] == 1
