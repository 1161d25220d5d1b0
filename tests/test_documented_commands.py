"""Every command and every block of Python of the documents: programs, options, names and files are there.

Those that a test also runs are listed in `RUN`, those that none runs in `NOT_RUN`, with the reason; a command that is
in neither list fails.
"""

from __future__ import annotations

import argparse
import configparser
import functools
import importlib
import re
import shlex
import subprocess
from contextlib import ExitStack
from pathlib import Path
from pydoc import locate

import pytest
from documented import PAGES, PROGRAMS, ROOT, Command, blocks, commands, name_of, own_experiment, python_blocks
from documented_names import faults

from musiccm import commands as subcommands
from musiccm.config import experiment_file, load_experiment, merge_config_arguments

HOURS = "trains or encodes for minutes to days; the same commands run at small sizes in tests/e2e"
DOWNLOADS = "needs files that people download"
#: The test that runs a page's commands, by a pattern of `PAGE: COMMAND`.
RUN = {
    r"README.md: musiccm (generate (?!.*--stream)|evaluate|plagiarism|--help)": "e2e/test_documented_runs.py",
    r"docs/levels.md: musiccm generate": "e2e/test_documented_runs.py",
    r"docs/plagiarism.md: musiccm (prepare index --root|plagiarism)": "e2e/test_documented_runs.py",
    r"docs/data.md: musiccm prepare demo": "e2e/test_documented_runs.py",
    r"README.md: musiccm (compare|export)": "e2e/test_researcher.py",
    r"docs/data.md: musiccm .*my.yaml": "e2e/test_researcher.py",
    r"docs/attm.md: (musiccm|torchrun)": "e2e/test_attm.py",
    r"README.md: musiccm words": "e2e/test_musician.py",
    r"docs/words.md: musiccm (words|generate)": "commands/test_words.py",
    r"(README|docs/listening).md: musiccm listen": "evaluation/listening/test_report.py",
    r"docs/serving.md: musiccm generate": "serving/test_sidecar.py",
    r"docs/serving.md: curl ": "serving/test_http.py",
}
#: Why no test runs the others; all of them are parsed here.
NOT_RUN = {
    r"[^:]*: pip ": "installs; tests/test_wheel.py installs the wheel and each extra",
    r"[^:]*: export ": "sets a variable of the shell",
    r"README.md: musiccm generate .*--stream": "half an hour of sound for a loudspeaker; streams of seconds are tested",
    r"README.md: musiccm (fit|test) --config demo ": "minutes; e2e/test_researcher.py runs both over demo",
    r"docs/evaluate.md: musiccm (evaluate|compare)": "a synopsis; the README's commands are run",
    r"docs/attm.md: (git|cp|python) ": DOWNLOADS,
    r"docs/(serving|studio).md: musiccm serve": "runs until it is ended; tests/serving starts servers",
    r"docs/speed.md: musiccm ": "compiles for a minute; tests/test_compiling.py compiles a small model and loads it",
    r"docs/words.md: musiccm pack": "of somebody's own corpus; tests/commands/test_pack.py packs words",
    r"docs/deployment.md: python deploy/": "run until they are ended; tests/deploy starts both with two replicas",
    r"docs/launch.md: (torchrun|srun) ": "several GPUs or machines; tests/e2e starts two processes (ranks, slurm)",
    r"docs/security.md: ": "classes of somebody's own; tests/e2e/test_bad_input.py allows some",
    r"docs/(data.md: (musiccm|torchrun).*latents --config demo|plagiarism.md: .*--config demo)": HOURS,
    r"docs/(dual_path|melody|semantic_tokens|train_a_teacher)\.md: |docs/objectives/|docs/recipe.md: ": HOURS,
    r"docs/(teachers|metrics)\.md: ": DOWNLOADS,
}
#: Commands of two words that have a parser each.
PARSERS = {("pack", "features"): ("_features", "_parser"), ("pack", "words"): ("_words", "_parser"),
           **{("listen", name): ("_listening", f"{name}_parser") for name in ("plan", "collect", "report")}}
#: Words of documents that stand for somebody's own.
PLACEHOLDERS = {"NAME", "FILE", "EXPERIMENT"}
#: Not Python: a list of signatures, by which tests/test_import_graph.py names the rooms.
SIGNATURES = {"docs/architecture.md"}

IN_BLOCKS = [command for command in commands() if not command.mentioned]
MENTIONED = [command for command in commands() if command.mentioned]


class Parsed(Exception):
    """Raised where a command would begin to work."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Any folder, with the experiment files that pages tell people to write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(own_experiment())
    (tmp_path / "mine.yaml").write_text("base: demo\n")
    (tmp_path / "my_teacher.yaml").write_text("base: stages/teacher\n")
    return tmp_path


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of a command and what it is given."""
    name, rest = words[0], words[1:]
    if where := PARSERS.get(tuple(words[:2])):
        module, made = where
        return getattr(importlib.import_module(f"musiccm.commands.{module}"), made)(), words[2:]
    parser = importlib.import_module(f"musiccm.commands.{name}")._parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and rest and rest[0] in action.choices:
            return action.choices[rest[0]], rest[1:]
    return parser, rest


#: Experiments are named on many pages.
load = functools.cache(load_experiment)


def check_experiments(words: list[str]) -> None:
    """Experiments that a command names are there; paths count from the folder that it is run in."""
    for option, value in zip(words, words[1:], strict=False):
        if option == "--config" and value not in PLACEHOLDERS:
            load(experiment_file(value).resolve(), resolve=False)


def parse_trainer(words: list[str]) -> None:
    """Parse as `musiccm fit` does, up to where it would build the model."""
    from musiccm.commands import _trainer
    from musiccm.commands._imports import check_classes, only_known_imports, take_allowed

    class Parsing(_trainer.TrainerCLI):
        def before_instantiate_classes(self) -> None:
            options = self.config[self.subcommand]
            check_classes(options, self.allowed)
            _trainer.check_trainer_options(self.subcommand, options.trainer,
                                           _trainer.named_class(_trainer.class_name(options.model)))
            raise Parsed

    words = ["demo" if word in PLACEHOLDERS else word for word in words]
    allowed, argv = take_allowed([words[0], *merge_config_arguments(words[0], words[1:])])
    with pytest.raises(Parsed), ExitStack() as held, only_known_imports(allowed):
        Parsing(argv, held, allowed)


def check_musiccm(command: Command) -> None:
    words = [word.strip("[]") for word in command.words[1:] if word != "..."]
    if words[0].startswith("-"):
        assert words in (["--help"], ["--version"]), command
        return
    assert words[0] in subcommands.summaries(), command
    check_experiments(words)
    if words[0] in subcommands.TRAINER_COMMANDS:
        # what an experiment says by itself, tests/test_experiments.py reads
        if not command.mentioned and set(words[1::2]) - {"--config", "--ckpt_path"}:
            parse_trainer(words)
        return
    parser, rest = parser_of(words)
    options = {option for action in parser._actions for option in action.option_strings}
    asked = {word.partition("=")[0] for word in rest if word.startswith("--")}
    # a metric that docs/extend.md adds has its own option (tests/test_extend.py)
    assert asked - options <= ({"--median-gap"} if command.page == "docs/extend.md" else set()), command
    if not command.mentioned:
        try:
            parser.parse_args(rest)
        except SystemExit:
            pytest.fail(f"{command}: {parser.prog} refuses it")
    if words[0] == "bench":
        assert (ROOT / f"benchmarks/{words[1]}.py").is_file(), command


def check_make(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [word for word in command.words[1:] if "=" not in word]
    assert set(targets) <= set(re.findall(r"^([a-z-]+):", makefile, re.M)), command
    values = dict(word.split("=", 1) for word in command.words[1:] if "=" in word)
    assert set(values) <= set(re.findall(r"^(\w+) \?=", makefile, re.M)), command
    if "EXPERIMENT" in values:
        assert (ROOT / f"experiments/{values['EXPERIMENT']}.yaml").is_file(), command
    if "BENCH" in values:
        assert (ROOT / f"benchmarks/{values['BENCH']}.py").is_file(), command
    if "train" in targets and "ARGS" in values:
        parse_trainer(["fit", "--config", values.get("EXPERIMENT", "demo"), *shlex.split(values["ARGS"])])
    planned = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert planned.returncode == 0, (command, planned.stderr)


def check_pip(command: Command) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"musiccm\[(\w+)\]", command.text):
        assert extra in setup["options.extras_require"], command


def check_program(command: Command) -> None:
    """Programs of this repository that are not `musiccm`: their file, and the option that a page names."""
    words = command.words
    if words[0] == "python":
        if command.page == "docs/attm.md":
            return  # of MTG's repository
        text = (ROOT / words[1]).read_text()
        if words[1].startswith("deploy/"):  # which have the server's options, too
            text += (ROOT / "src/musiccm/commands/serve.py").read_text()
    elif words[0] == "tensorboard":
        text = Path(str(locate("tensorboard.plugins.core.core_plugin").__file__)).read_text()
    elif words[0] == "pytest":
        text = (ROOT / "tests/conftest.py").read_text() + "-m"
    else:
        return  # the shell's own, launchers and git, which are not this project's
    assert all(word in text for word in words if word.startswith("-")), command


CHECKS = {"musiccm": check_musiccm, "make": check_make, "pip": check_pip}


@pytest.mark.parametrize("page", list(dict.fromkeys(command.page for command in commands())))
def test_every_command_of_a_page_is_there_with_its_options(page: str, folder: Path) -> None:
    seen = set()
    for command in commands():
        if command.page == page and command.words and command.text not in seen:
            CHECKS.get(command.words[0], check_program)(command)
            seen.add(command.text)


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    for command in IN_BLOCKS:
        found = [pattern for pattern in (*RUN, *NOT_RUN) if re.match(pattern, str(command))]
        made = re.match(r"[^:]*: make ", str(command))  # every target is planned above, by make itself
        assert len(found) == 1 or made, (str(command), found)
    for pattern in (*RUN, *NOT_RUN):
        assert any(re.match(pattern, str(command)) for command in commands()), f"{pattern}: no such command any more"
    for name in RUN.values():
        assert (ROOT / "tests" / name).is_file(), name


def test_no_block_with_a_command_goes_unread() -> None:
    read = {(command.page, command.text.split()[0]) for command in IN_BLOCKS}
    for page in PAGES:
        for language, body in blocks(page):
            if language in ("", "bash", "sh", "shell", "console"):
                first = {line.split()[0] for line in body.splitlines() if line.split() and line[0] != " "} & PROGRAMS
                assert {(name_of(page), word) for word in first} <= read, body


def test_scripts_of_a_shell_are_sound() -> None:
    scripts = [body for page in PAGES for language, body in blocks(page) if language == "bash"]
    assert scripts
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=30)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_a_block_of_python_compiles_and_names_what_is_there(page: str, block: str) -> None:
    if page in SIGNATURES:
        with pytest.raises(SyntaxError):
            compile(block, page, "exec")
        return
    assert faults(page, block) == []
