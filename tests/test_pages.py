"""The pages that a visitor reads: links and anchors lead somewhere, commands exist, the README is short."""

import argparse
import re
import shlex

import pytest

from srlib.__main__ import main
from srlib.config import load_config
from srlib.files import REPOSITORY

PAGES = sorted(
    p for folder in (".", "notebooks", "notebooks/experiments", "data", "data/weights", "srlib") for p in (REPOSITORY / folder).glob("*.md")
)
TOPICS = [f"notebooks/{name}.md" for name in ("README", "KAGGLE", "RESULTS", "PHANTOMS", "RELATED", "experiments/README")]
TOPICS += ["data/README.md", "srlib/README.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page) -> set[str]:
    """GitHub's anchors of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(page) -> list[str]:
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    inline = re.findall(r"`((?:\./run_all\.sh|python -m srlib)[^`]*)`", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^(?:\./run_all\.sh|python -m srlib).*", "\n".join(blocks).replace("\\\n", ""), re.M)
    return [line for line in lines + inline if "COMMAND" not in line and "..." not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:|attachment:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{page}: {target} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_commands(page, monkeypatch):
    class Parsed(Exception):
        pass

    def parse(parser, words):
        args, unknown = parser.parse_known_args(words)
        assert not unknown, f"{parser.prog} knows no {unknown}"
        raise Parsed(args)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for line in commands(page):
        words = shlex.split(line, comments=True)
        words = words[1:] if words[0] == "./run_all.sh" else words[3:]
        words = [w for w in words if w != "--conda"]
        if words[:1] in (["test"], ["lab"]) or words == ["--help"]:
            continue
        with pytest.raises(Parsed) as parsed:
            main(words if words and not words[0].startswith("-") else ["run", *words])
        args = parsed.value.args[0]
        for name, value in getattr(args, "p", ()):
            kind = type(getattr(load_config("quick"), name))
            load_config("quick", **{name: value if kind is str else kind(float(value)) if kind is not bool else value == "true"})


def test_topic_pages_are_linked_both_ways():
    front = REPOSITORY / "README.md"
    leads_to = {(front.parent / target.partition("#")[0]).resolve() for target in LINK.findall(front.read_text(encoding="utf-8"))}
    for topic in TOPICS:
        page = REPOSITORY / topic
        assert page in leads_to, f"the README does not link {topic}"
        back = {(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))}
        assert front in back, f"{topic} does not link the README"


def test_readme_is_short():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(prose.split()) <= 600 and len(re.findall(r"!\[", text)) == 1
    assert len(re.findall(r"^\|[-| :]+\|$", text, re.M)) == 2  # the notebooks, the results
    at = [text.index(word) for word in ("git clone", "./run_all.sh\n", "./run_all.sh test", "upscale")]
    assert at == sorted(at)
