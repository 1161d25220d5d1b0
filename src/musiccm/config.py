"""Experiment files: YAML that states only its difference from a base.

A file may open with ``base: ../demo.yaml`` (a path relative to itself), ``base: demo`` (the name of an experiment that
the package brings, also as ``demo.yaml`` where no such file lies beside it) or a list of these. The base is read first,
and then the file is laid over it: mappings merge key by key, everything else replaces, ``key+:`` appends to the base's
list, and a block whose ``class_path`` differs replaces the base's block whole, since the arguments belong to the class.
The base's ``experiment``, the name of its runs' folder, is not passed on.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.texts import read_text

#: Where the experiments are that the package brings; in a clone a link to `experiments/`.
PACKAGED = Path(str(importlib.resources.files("musiccm"))) / "experiments"
SUFFIXES = (".yaml", ".yml")
#: Experiments of earlier versions that have another name now: since which version, and which.
FORMER = {
    "judge_short_crop": ("0.3", "demo"),
    "judge_whole_clip": ("0.2", "ablations/discriminator_whole_clip"),
    "discriminator_short_crop": ("0.3", "demo"),
    "adversarial_audiomae": ("0.3", "ablations/discriminator_half_clip"),
    "clap_features": ("0.3", "ablations/musiccm_clap_features"),
    "epsilon_student": ("0.3", "musiccm"),
}
MAX_NAME_BYTES = 200  # of the 255 that file systems take
MAX_NODES = 100_000
PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in (
    "null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp", "value"))


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another; see the module's rules. Neither argument is changed."""
    merged = dict(under)
    for key, value in over.items():
        appended_to = key[:-1] if key.endswith("+") else None
        if appended_to is not None and isinstance(value, list):
            merged[appended_to] = [*(merged.get(appended_to) or []), *value]
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and _same_class(merged[key], value):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _same_class(under: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return "class_path" not in over or under.get("class_path") == over["class_path"]


def packaged_experiments() -> list[str]:
    """Names of the experiments that the package brings, such as `demo` and `stages/teacher`."""
    return sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.yaml"))


def experiment_file(named: str | Path) -> Path:
    """Where an experiment is.

    Args:
        named: The path of a YAML file, or the name of an experiment that the package brings (`demo`, `stages/teacher`).
            A file that is there goes before a name.

    Returns:
        The file; an absolute path or one that ends in `.yaml` comes back as it is, whether or not something is there.

    Raises:
        MusiccmError: There is no such file or name.
    """
    path = Path(named)
    if path.suffix in SUFFIXES or path.is_file() or path.is_absolute():
        return path
    known = packaged_experiments()
    if str(named) in known:
        return (PACKAGED / f"{named}.yaml").resolve()  # in a clone the file that people edit
    near = difflib.get_close_matches(str(named), known, n=1)
    hint = _renamed(path.name) or (f"; did you mean {near[0]!r}?" if near else "")
    raise MusiccmError(f"there is no experiment {str(named)!r}{hint}\nExpected the path of a YAML file, or one of "
                       f"{', '.join(known)}")


def _renamed(stem: str) -> str:
    """What a message says of an experiment that has another name now; nothing for others."""
    if stem not in FORMER:
        return ""
    version, name = FORMER[stem]
    return f"; since version {version} it is {name}"


def load_experiment(*paths: str | Path, resolve: bool = True) -> dict[str, Any]:
    """Read experiment files with their bases, later ones laid over earlier ones.

    The key ``experiment``, which names the run's folder, defaults to the first file's stem: what is laid
    over it, such as a strategy, is no other experiment.

    Args:
        *paths: YAML files or names (`experiment_file`), at least one.
        resolve: Whether `${...}` interpolation is carried out. Where command-line overrides are still to come, it
            must wait for them.

    Returns:
        Plain dicts, lists and scalars.

    Raises:
        MusiccmError: If a file is missing, unreadable or not a YAML mapping, its bases form a circle, or `experiment`
            is not the name of one folder.
    """
    files = [experiment_file(path) for path in paths]
    merged: dict[str, Any] = {}
    for file in files:
        merged = merge(merged, _load_with_bases(file, ()))
    merged.setdefault("experiment", files[0].stem)
    check_run_name(merged["experiment"])
    if not resolve:
        return merged
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with no_resolvers():
            resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise MusiccmError(f"{files[-1]}: cannot resolve an interpolation: {error}") from error
    check_run_name(resolved["experiment"])  # type: ignore[call-overload,index]
    return resolved  # type: ignore[return-value]


def data_settings(*paths: str | Path) -> dict[str, Any]:
    """`data.init_args` of experiment files.

    Args:
        *paths: Experiment files, later ones laid over earlier ones.

    Returns:
        The settings; empty where the files have none.

    Raises:
        MusiccmError: See `load_experiment`; or a setting stands beside `init_args`, where nothing would read it.
    """
    data = load_experiment(*paths).get("data") or {}
    if not isinstance(data, dict) or not isinstance(settings := data.get("init_args") or {}, dict):
        raise MusiccmError(f"{paths[-1]}: expected a section data with class_path and init_args, found {data!r}")
    if stray := [key for key in data if key not in ("class_path", "init_args")]:
        raise MusiccmError(f"{paths[-1]}: data.{stray[0]}: settings of the data stand under data.init_args; expected "
                           f"data.init_args.{stray[0]}")
    return settings


def bases_of(path: Path) -> list[Path]:
    """The files that an experiment file is laid over, without theirs.

    Args:
        path: The file.

    Returns:
        Their paths, in order.

    Raises:
        MusiccmError: As `load_experiment`.
    """
    return _bases(path, _read_mapping(path, None).get("base", []))


def merge_config_arguments(command: str, argv: list[str]) -> list[str]:
    """Replace every `--config FILE` and `--config NAME` by one configuration in which their bases are merged.

    Args:
        command: The subcommand's name, for messages.
        argv: Its arguments.

    Returns:
        The arguments for jsonargparse, the merged YAML text first, so that all other arguments win over it. A call
        for help comes back as it is.

    Raises:
        MusiccmError: If there is no `--config`, or one cannot be read.
    """
    import yaml

    rest, paths = [], []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in ("-c", "--config"):
            rest.append(argument)
            continue
        path = value if equals else next(arguments, None)
        if not path:
            raise MusiccmError(f"{option} needs an experiment: the path of a file, or a name such as demo")
        paths.append(path)
    if any(r in ("-h", "--help") or ".help" in r for r in rest):
        return argv
    if not paths:
        raise MusiccmError(f"{command} needs --config, with the path of an experiment file or a name such as demo")
    merged = load_experiment(*paths, resolve=False)
    return ["--config", yaml.safe_dump(merged, sort_keys=False, width=10**6), *rest]


def check_run_name(name: Any) -> None:
    """Refuse a name of an experiment that is no name of one folder.

    Args:
        name: The key `experiment`, or `--experiment`.

    Raises:
        MusiccmError: It is empty, too long, or leads to another folder than `lightning_logs`.
    """
    text = str(name) if isinstance(name, str | int) else ""
    sound = text.strip() and text not in (".", "..") and text.isprintable() and not set(text) & set("/\\")
    if not sound or len(text.encode()) > MAX_NAME_BYTES:
        raise MusiccmError(f"experiment: expected the name of a folder in lightning_logs, of at most {MAX_NAME_BYTES} "
                           f"bytes and without / or \\, found {str(name)[:100]!r}")


@contextlib.contextmanager
def no_resolvers() -> Iterator[None]:
    """Leave of OmegaConf's `${...}` the references to other keys alone.

    Its functions read the environment (`oc.env`), whose secrets would be saved in `config.yaml`, and import modules
    (`oc.coerce`).
    """
    from omegaconf.basecontainer import BaseContainer

    def refused(name: str) -> Callable[..., Any]:
        def refuse(*_: Any) -> Any:
            raise MusiccmError(f"${{{name}:...}}: functions are not called in an experiment file; only values of other "
                               "keys can be taken over, as ${key}. Give the value on the command line")

        return refuse

    kept = BaseContainer._resolvers
    BaseContainer._resolvers = {name: refused(name) for name in kept}
    try:
        yield
    finally:
        BaseContainer._resolvers = kept


def _load_with_bases(path: Path, above: Sequence[Path]) -> dict[str, Any]:
    if path.resolve() in above:
        chain = " -> ".join(p.name for p in [*above, path])
        raise MusiccmError(f"{path}: its bases form a circle ({chain}); remove one `base:`")
    content = _read_mapping(path, named_by=above[-1] if above else None)
    bases = _bases(path, content.pop("base", []))
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _load_with_bases(base, [*above, path.resolve()]))
    # A base's name is its own: a derived run must not go to the folder of the run that it is compared with.
    merged.pop("experiment", None)
    return merge(merged, content)


def _bases(path: Path, stated: Any) -> list[Path]:
    bases = [stated] if isinstance(stated, str) else stated
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise MusiccmError(f"{path}: `base` must be a path or a list of paths relative to this file, found {bases!r}")
    found = []
    for base in bases:
        beside, suffix = path.parent / base, Path(base).suffix
        name = base.removesuffix(suffix)
        if beside.is_file() or suffix in SUFFIXES and name not in packaged_experiments():
            found.append(beside)
            continue
        try:
            found.append(experiment_file(name if suffix in SUFFIXES else base))
        except MusiccmError as error:
            raise MusiccmError(f"{path}: `base`: {error}") from error
    return found


def _read_mapping(path: Path, named_by: Path | None) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = read_text(path)
    except FileNotFoundError:
        where = f" (the `base` of {named_by})" if named_by else ""
        known = path.with_suffix("").as_posix().removeprefix("experiments/")
        hint = f"; or, as musiccm brings it, {known}" if known in packaged_experiments() else ""
        hint += _renamed(path.stem)
        raise MusiccmError(f"config file {path}{where} does not exist; check the path{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MusiccmError(f"config file {path} cannot be read: {reason}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise MusiccmError(f"config file {path} must be a YAML mapping of names to values, found {kind}")
        if root is not None:
            _check_nodes(path, root)
        # OmegaConf's reader, unlike plain YAML, takes 1e-4 for a number and refuses a key given twice.
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if root is not None else {}
    except RecursionError:
        raise MusiccmError(f"config file {path} is nested too deeply") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise MusiccmError(f"config file {path} is not valid YAML: {error}") from error
    if not all(isinstance(key, str) for key in content):  # type: ignore[union-attr]
        raise MusiccmError(f"config file {path} must name its values by words, found the keys {list(content)!r}")  # type: ignore[arg-type]
    return content  # type: ignore[return-value]


def _check_nodes(path: Path, root: Any) -> None:
    """Refuse YAML that names types of its own (`!!python/...`), or grows without bound by `&anchor` and `*alias`."""
    import yaml

    left = MAX_NODES
    stack = [root]
    while stack:
        node = stack.pop()
        left -= 1
        if left < 0:
            raise MusiccmError(f"config file {path} has more than {MAX_NODES} values once its aliases are written out; "
                               "write them out, or leave them out")
        if node.tag not in PLAIN_TAGS:
            raise MusiccmError(f"config file {path}, line {node.start_mark.line + 1}: the tag {node.tag} names a type "
                               "that is not plain YAML; expected mappings, lists, texts, numbers and the like")
        if isinstance(node, yaml.MappingNode):
            stack += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value
