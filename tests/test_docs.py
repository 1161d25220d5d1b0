"""The documentation's site names every page, and what its build computes is right."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import soundfile
import yaml

import musiccm

ROOT = Path(__file__).parents[1]
#: Pages that docs/build_site.py makes.
COMPUTED = {"index.md", "package_map.md", "sounds.md"}


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs/build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_is_in_the_menu_once() -> None:
    menu = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = ROOT / "docs"
    assert sorted(menu) == sorted({path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | COMPUTED)


def test_every_objective_has_a_line_and_every_link_of_its_pages_leads_somewhere() -> None:
    index = ROOT / "docs/objectives.md"
    listed = re.findall(r"^\| `(\w+)` \|", index.read_text(), flags=re.M)
    experiments = {path.stem for path in (ROOT / "experiments/objectives").glob("*.yaml")}
    assert experiments <= set(listed) and len(listed) == len(set(listed)) == 10
    for page in [index, *(ROOT / "docs/objectives").glob("*.md")]:
        links = re.findall(r"\]\(([^)]+\.md)\)", page.read_text())
        assert all((page.parent / link).is_file() for link in links), page


def test_every_name_of_the_reference_is_there() -> None:
    """The generator reads the source and imports nothing; this does."""
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), flags=re.M)
    assert len(names) > 10 and all(locate(name) is not None for name in names)
    described = {locate(name) for name in names}
    assert all(getattr(musiccm, name) in described for name in musiccm.__all__)


def test_the_readme_links_to_pages_that_are_there(site: Any) -> None:
    text = site.start_page((ROOT / "README.md").read_text(encoding="utf-8"))
    linked = set(re.findall(r"\]\(([a-z_]+\.md)\)", text))
    assert len(linked) > 5 and linked <= {path.name for path in (ROOT / "docs").glob("*.md")}
    files = re.findall(r"\]\(((?:images|sounds)/[^)]+)\)", text)
    assert all((ROOT / "docs" / file).is_file() for file in files)
    sounds = [f"sounds/{name}.ogg" for name in ("teacher-50", "student-4", "student-1")]
    assert files == ["images/studio.png", *sounds, "images/distances.png"]
    assert text.index(files[-1]) < text.index("## ")  # it opens with them
    for sound in sounds:
        samples, rate_hz = soundfile.read(ROOT / "docs" / sound)
        assert (len(samples), rate_hz) == (81_920, 16_000) and abs(samples).max() > 0.1


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(cited["version"]) == musiccm.__version__ and cited["license"] == "Apache-2.0"
    article, readme = cited["preferred-citation"], (ROOT / "README.md").read_text(encoding="utf-8")
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in article["authors"])
    assert f"title   = {{{article['title']}}}" in readme and f"author  = {{{names}}}" in readme


def test_floors_and_arrows_of_a_small_package(site: Any) -> None:
    rooms = {"roof": {"hall", "cellar"}, "hall": {"cellar"}, "cellar": set(), "shed": set()}
    assert site.floors_of(rooms) == {"roof": 2, "hall": 1, "cellar": 0, "shed": 0}
    assert site.without_shortcuts(rooms) == {"roof": {"hall"}, "hall": {"cellar"}, "cellar": set(), "shed": set()}
    drawn = site.picture(rooms)
    assert drawn.count("<rect") == 4 and drawn.count("<path d=\"M") == 1 + 2  # an arrow's head, and two arrows
    heights = {name: int(y) for y, name in re.findall(r'y="(\d+)">(\w+)</text>', drawn)}
    assert heights["roof"] < heights["hall"] < heights["cellar"] == heights["shed"]


def test_the_package_as_it_is_has_no_circle(site: Any) -> None:
    rooms = site.imports(ROOT / "src/musiccm")
    assert {"pipeline", "systems", "models", "diffusion"} <= rooms.keys()
    page = site.package_map(rooms)
    assert "| `systems` | " in page and ">pipeline</text>" in page
