from pathlib import Path

import pytest

from musiccm.config import FORMER, data_settings, load_experiment, merge, merge_config_arguments, packaged_experiments
from musiccm.errors import MusiccmError


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return _write


def test_a_setting_beside_init_args_is_refused_by_its_key(tmp_path):
    path = tmp_path / "flat.yaml"
    path.write_text("base: demo\ndata: {root: mine, layout: manifest}\n")
    with pytest.raises(MusiccmError, match=r"flat.yaml: data.root: .* expected data.init_args.root"):
        data_settings(path)
    path.write_text("base: demo\ndata: {init_args: {root: mine}}\n")
    assert data_settings(path)["root"] == "mine"


def test_a_file_states_only_its_difference(write):
    write("demo.yaml", "trainer: {max_steps: 10, devices: 1}\nmodel: {class_path: a.A, init_args: {lr: 1e-3, k: 20}}\n")
    path = write("sub/long.yaml", "base: ../demo.yaml\ntrainer: {max_steps: 90}\nmodel: {init_args: {k: 100}}\n")
    assert load_experiment(path) == {
        "trainer": {"max_steps": 90, "devices": 1},
        "model": {"class_path": "a.A", "init_args": {"lr": 0.001, "k": 100}},
        "experiment": "long",
    }


def test_a_run_is_named_after_its_own_file_even_where_the_base_has_a_name(write):
    write("demo.yaml", "experiment: demo\na: 1\n")
    assert load_experiment(write("ablation.yaml", "base: demo.yaml\n"))["experiment"] == "ablation"
    assert load_experiment(write("named.yaml", "base: demo.yaml\nexperiment: mine\n"))["experiment"] == "mine"


def test_several_bases_and_several_files_later_ones_win(write):
    write("a.yaml", "x: 1\ny: 1\nz: 1\n")
    write("b.yaml", "y: 2\nz: 2\n")
    first = write("c.yaml", "base: [a.yaml, b.yaml]\nz: 3\n")
    second = write("d.yaml", "x: 4\n")
    assert load_experiment(first, second) == {"x": 4, "y": 2, "z": 3, "experiment": "c"}


def test_another_class_takes_nothing_from_the_base():
    under = {"m": {"class_path": "a.A", "init_args": {"only_in_a": 1}}}
    assert merge(under, {"m": {"class_path": "b.B"}}) == {"m": {"class_path": "b.B"}}
    same = merge(under, {"m": {"class_path": "a.A", "init_args": {"k": 2}}})
    assert same == {"m": {"class_path": "a.A", "init_args": {"only_in_a": 1, "k": 2}}}
    assert under == {"m": {"class_path": "a.A", "init_args": {"only_in_a": 1}}}


def test_lists_replace_and_plus_appends():
    under = {"callbacks": ["one"]}
    assert merge(under, {"callbacks": ["two"]}) == {"callbacks": ["two"]}
    assert merge(under, {"callbacks+": ["two"]}) == {"callbacks": ["one", "two"]}
    assert merge({}, {"callbacks+": ["two"]}) == {"callbacks": ["two"]}


def test_interpolation_waits_for_overrides_or_is_resolved(write):
    path = write("e.yaml", "experiment: named\na: 5\nb: ${a}\n")
    assert load_experiment(path) == {"experiment": "named", "a": 5, "b": 5}
    assert load_experiment(path, resolve=False)["b"] == "${a}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,", "not valid YAML"),
        ("- 1\n- 2\n", "must be a YAML mapping"),
        ("just words", "must be a YAML mapping"),
        ("a: 1\na: 2\n", "not valid YAML"),
        ("1: a\n", "by words"),
        ("base: {x: 1}\n", "`base` must be a path"),
        ("base: bad.yaml\n", "circle"),
        ("base: missing.yaml\n", "missing.yaml"),
        ("a: ${nowhere}\n", "nowhere"),
    ],
)
def test_bad_files_are_named(write, text, said):
    path = write("bad.yaml", text)
    with pytest.raises(MusiccmError, match=said) as caught:
        load_experiment(path)
    assert "bad.yaml" in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(MusiccmError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(MusiccmError, match="cannot be read"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(MusiccmError, match="UTF-8"):
        load_experiment(tmp_path / "latin.yaml")
    (tmp_path / "wide.yaml").write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(MusiccmError, match=r"wide.yaml: the text is UTF-16.*save it again as UTF-8"):
        load_experiment(tmp_path / "wide.yaml")


def test_a_byte_order_mark_is_no_part_of_an_experiment(tmp_path):
    (tmp_path / "base.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfbase: base.yaml\nb: 2\n")
    assert load_experiment(tmp_path / "x.yaml") == {"a": 1, "b": 2, "experiment": "x"}


def test_config_arguments_come_first_so_that_others_win(write):
    a, b = write("a.yaml", "x: 1e-5\ny: 1\n"), write("b.yaml", "y: 2\n")
    arguments = merge_config_arguments("fit", ["--y", "3", "-c", str(a), f"--config={b}"])
    assert arguments[0] == "--config" and arguments[2:] == ["--y", "3"]
    copy = write("copy.yaml", arguments[1])
    assert load_experiment(copy) == {"x": 1e-5, "y": 2, "experiment": "a"}
    assert merge_config_arguments("fit", ["--help"]) == ["--help"]
    for arguments in ([], ["--config"]):
        with pytest.raises(MusiccmError, match="--config"):
            merge_config_arguments("fit", arguments)


def test_an_experiment_of_the_package_is_found_by_name(write, tmp_path, monkeypatch):
    folder = Path(__file__).parents[1] / "experiments"
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "stages/teacher", "ablations/paper_recipe"):
        assert load_experiment(name) == load_experiment(folder / f"{name}.yaml")
    assert set(packaged_experiments()) == {str(path.relative_to(folder).with_suffix(""))
                                           for path in folder.rglob("*.yaml")}
    ours = load_experiment(write("mine.yaml", "base: demo\ntrainer: {max_steps: 7}\n"))
    assert ours["experiment"] == "mine" and ours["trainer"]["max_steps"] == 7
    assert ours["data"] == load_experiment("demo")["data"]
    assert load_experiment(write("mine.yaml", "base: demo.yaml\ntrainer: {max_steps: 7}\n")) == ours
    write("demo.yaml", "trainer: {max_steps: 9}\n")
    beside = load_experiment(write("mine.yaml", "base: demo.yaml\n"))
    assert beside == {"trainer": {"max_steps": 9}, "experiment": "mine"}, "what lies beside the file goes first"
    (tmp_path / "demo").write_text("trainer: {max_steps: 8}\n")
    assert load_experiment("demo") == {"trainer": {"max_steps": 8}, "experiment": "demo"}, "a file goes before a name"


def test_an_unknown_name_is_answered_with_those_there_are(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MusiccmError, match=r"no experiment 'dem'; did you mean 'demo'\?\n.* one of .*stages/teacher"):
        load_experiment("dem")
    with pytest.raises(MusiccmError, match=r"mine.yaml: `base`: there is no experiment 'stages/techer'"):
        load_experiment(write("mine.yaml", "base: stages/techer\n"))
    with pytest.raises(MusiccmError, match=r"experiments/demo.yaml does not exist.* musiccm brings it, demo"):
        load_experiment("experiments/demo.yaml")


@pytest.mark.parametrize(("old", "new"), FORMER.items())
def test_an_experiment_that_was_renamed_is_named(write, old, new):
    said = f"since version {new[0]} it is {new[1]}"
    with pytest.raises(MusiccmError, match=f"does not exist.*{said}"):
        load_experiment(write("mine.yaml", f"base: ablations/{old}.yaml\n"))
    with pytest.raises(MusiccmError, match=f"no experiment 'ablations/{old}'; {said}"):
        load_experiment(f"ablations/{old}")
    load_experiment(new[1])
