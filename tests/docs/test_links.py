"""Test that the links in the documentation resolve."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [path for path in (ROOT / "docs").rglob("*.md") if "api" not in path.parts]
    + list((ROOT / "benchmarks").glob("*.md"))
)


def read_prose(page):
    """Return a page's text without code blocks, which contain neither headings nor links."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def list_anchors(page):
    """Return the anchors that GitHub generates for a page's headings."""
    anchors = []
    for heading in re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        anchors.append(f"{anchor}-{anchors.count(anchor)}" if anchor in anchors else anchor)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_listed_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [path for folder in ("how-to", "reference", "explanation") for path in (ROOT / "docs" / folder).glob("*.md")]
    assert [path.name for path in pages if f"({path.parent.name}/{path.name})" not in index] == []
