"""Imports run one way: the table in docs/architecture.md is the law, and this walks the source against it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# "" is the package itself, for its version
ALWAYS = {"bounds", "columns", "errors", "failures", "files", "loading", "local_models", "locks", "progress",
          "signals", "terminal", "texts", ""}


def read_table(text: str) -> dict[str, set[str]]:
    """Room -> rooms that it may import, itself and its row included."""
    rows = []
    for first, _, allowed in re.findall(r"^\| (`[^|]+) \|([^|]*)\| ([^|]*) \|$", text, flags=re.M):
        rows.append((re.findall(r"`([a-z_]+)(?:/|\.py)`", first), allowed.strip()))
    everything = {room for rooms, _ in rows for room in rooms}
    table = {}
    for rooms, allowed in rows:
        if allowed.startswith("nothing"):
            may = set()
        elif allowed == "all":
            may = everything
        elif allowed.startswith("all but "):
            may = everything - set(allowed.removeprefix("all but ").split(", "))
        else:
            may = set(allowed.split(", "))
        assert may <= everything, f"the table lets {rooms} import rooms that it does not describe: {may - everything}"
        for room in rooms:
            table[room] = may | set(rooms) | ALWAYS
    table["__main__"] = {"cli"}
    table["__init__"] = everything  # only for type checkers: its names are imported when they are used
    return table


def imported_rooms(path: Path, source: Path) -> set[str]:
    """Rooms that one file imports, wherever in the file it does so."""
    package = ["musiccm", *path.relative_to(source).parts[:-1]]
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from musiccm import cli` names a room, `from musiccm import __version__` does not.
            deeper = {f"{stem}.{alias.name}" for alias in node.names}
            modules |= deeper if stem == "musiccm" else {stem}
    parts = [module.split(".") for module in modules if module.split(".")[0] == "musiccm"]
    rooms = {path.stem if path.is_file() else path.name for path in source.iterdir()}
    return {p[1] if len(p) > 1 and p[1] in rooms else "" for p in parts}


def violations(source: Path, table: dict[str, set[str]]) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        room = Path(relative.parts[0]).stem
        if room not in table:
            found.append(f"{relative}: the room {room!r} is not in the table")
            continue
        found += [f"{relative} imports {other}" for other in sorted(imported_rooms(path, source) - table[room])]
    return found


def test_source_follows_the_table():
    table = read_table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert {"diffusion", "systems", "pipeline", "export", "cli", "commands"} <= set(table)
    assert violations(ROOT / "src/musiccm", table) == []


def imported_modules(path: Path, source: Path) -> set[str]:
    """All that a file imports when it runs, names of modules and what may be names within them."""
    package = ["musiccm", *path.relative_to(source).parts[:-1]]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in typing for statement in node.body for inner in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    return found


def reached(room: Path, source: Path) -> dict[str, str]:
    """Every module that a room's files import, and those import in turn, with who imports it."""
    waiting, found = sorted(room.rglob("*.py")), {}
    while waiting:
        path = waiting.pop()
        for module in imported_modules(path, source):
            parts = module.split(".")
            # a module runs the packages that it lies in
            for name in [".".join(parts[: n + 1]) for n in range(len(parts))]:
                if name in found:
                    continue
                found[name] = str(path.relative_to(source))
                own = source.joinpath(*name.split(".")[1:]) if name.split(".")[0] == "musiccm" else None
                files = [own.with_suffix(".py"), own / "__init__.py"] if own and own != source else []
                waiting += [file for file in files if file.is_file()]
    return found


@pytest.mark.parametrize("room", ["evaluation", "embedders", "metrics", "long_form"])
def test_what_needs_no_lightning_reaches_none(room):
    source = ROOT / "src/musiccm"
    found = reached(source / room, source)
    assert "torch" in found
    lightning = {name: by for name, by in found.items() if name.split(".")[0] in ("pytorch_lightning", "lightning")}
    assert lightning == {}


def test_the_engine_of_serving_knows_nothing_of_the_web():
    source = ROOT / "src/musiccm"
    found = {module for path in (source / "serving").glob("*.py") for module in imported_modules(path, source)}
    assert "musiccm.serving.device_queue" in found
    web = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "anyio", "httpx"}
    assert not {name for name in found if name.startswith("musiccm.serving.http") or name.split(".")[0] in web}


def test_the_walk_sees_what_is_reached_by_others():
    source = ROOT / "src/musiccm"
    # the index of an experiment's clips needs its data module, which is a Lightning one
    assert reached(source / "similarity", source)["pytorch_lightning"] == "data/module.py"


EXAMPLE_TABLE = """
| room | what lives there | may import |
|---|---|---|
| `errors.py` | x | nothing of ours; everyone may import it |
| `low/` | x | nothing |
| `high/` | x | low |
| `one.py`, `two.py` | x | high |
| `cli.py` | x | all |
| `tools/` | x | all but cli |
"""


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("high/a.py", "from musiccm.low import f", []),
        ("high/a.py", "from ..low.b import f\nfrom musiccm import __version__", []),
        ("low/a.py", "from musiccm.errors import MusiccmError\nimport torch\nfrom .b import f", []),
        ("one.py", "import musiccm.two", []),
        ("low/a.py", "def f():\n    import musiccm.high.c", ["low/a.py imports high"]),
        ("low/a.py", "from ..high import c", ["low/a.py imports high"]),
        ("low/a.py", "from musiccm import high", ["low/a.py imports high"]),
        ("tools/a.py", "from musiccm.cli import main", ["tools/a.py imports cli"]),
        ("stray/a.py", "", ["stray/a.py: the room 'stray' is not in the table"]),
    ],
)
def test_walk_sees_arrows(tmp_path, file, code, expected):
    for name in ("low/b.py", "high/c.py", "cli.py", "two.py", "errors.py", file):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code if name == file else "")
    assert violations(tmp_path, read_table(EXAMPLE_TABLE)) == expected
