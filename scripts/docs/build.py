#!/usr/bin/env python3
"""Builds the documentation as a book, or checks the links of its pages.

usage: build.py links             check that every relative link and heading in the Markdown files exists
       build.py source REFERENCE  write target/book-src: the pages of docs/SUMMARY.md, with those generated
                                  from the folder REFERENCE and from views/*.sql
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "target/book-src"
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<to>[^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)


def tracked_pages():
    """Returns every Markdown file of the repository, except those of tests."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split()
    return [ROOT / name for name in listed if "/tests/" not in name and (ROOT / name).is_file()]


def anchor(heading):
    """Returns the anchor of a heading, as GitHub and mdbook make it."""
    kept = "".join(c for c in heading.strip().lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def anchors(page):
    text = FENCE.sub("", page.read_text())
    return {anchor(re.sub(r"[`*]", "", line.lstrip("#"))) for line in text.splitlines() if line.startswith("#")}


def dead_links():
    for page in tracked_pages():
        text = FENCE.sub(lambda found: "\n" * found.group(0).count("\n"), page.read_text())
        for number, line in enumerate(text.splitlines(), 1):
            for link in LINK.finditer(line):
                to, _, place = link["to"].partition("#")
                if re.match(r"[a-z]+:", to):
                    continue
                target = page if not to else (page.parent / to).resolve()
                # Generated pages exist only once the book is built.
                if target.parent == ROOT / "docs/reference":
                    continue
                where = f"{page.relative_to(ROOT)}:{number}"
                if not target.exists():
                    yield f"{where}: {link['to']} does not exist"
                elif place and target.suffix == ".md" and place not in anchors(target):
                    yield f"{where}: {link['to']}: no such heading"


def views():
    """Returns a page made from the comments in views/*.sql."""
    lines = ["# Views", "", "Dashboards read these views in Postgres, schema `ops`. Columns are only ever added."]
    for file in sorted((ROOT / "views").glob("*.sql")):
        text = file.read_text()
        said = dict(re.findall(r"COMMENT ON COLUMN ops\.\w+\.(\w+) IS '((?:[^']|'')*)';", text))
        (view, about), = re.findall(r"COMMENT ON VIEW ops\.(\w+) IS '((?:[^']|'')*)';", text)
        lines += ["", f"## ops.{view}", "", about.replace("''", "'"), "", "| column | meaning |", "|---|---|"]
        lines += [f"| `{column}` | {meaning.replace(chr(39) * 2, chr(39))} |" for column, meaning in said.items()]
    return "\n".join(lines) + "\n"


def source(reference):
    repository = re.search(r'^repository = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    shutil.rmtree(SOURCE, ignore_errors=True)
    summary = (ROOT / "docs/SUMMARY.md").read_text()
    pages = {(ROOT / "docs" / to).resolve() for _, to in LINK.findall(summary)}
    generated = {ROOT / "docs/reference/views.md": views()}
    for file in Path(reference).glob("*.md"):
        generated[ROOT / "docs/reference" / file.name] = file.read_text()

    def relinked(page, text):
        def new(link):
            to, mark, place = link["to"].partition("#")
            if not to or re.match(r"[a-z]+:", to):
                return link.group(0)
            target = (page.parent / to).resolve()
            if target in pages or not target.is_relative_to(ROOT):
                return link.group(0)
            return f"[{link['text']}]({repository}/blob/main/{target.relative_to(ROOT)}{mark}{place})"
        return LINK.sub(new, text)

    for page in sorted(pages):
        text = generated.get(page)
        if text is None:
            text = page.read_text()
        out = SOURCE / page.relative_to(ROOT)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(relinked(page, text))
    moved = LINK.sub(lambda link: f"[{link['text']}]({(Path('docs') / link['to']).as_posix()})", summary)
    (SOURCE / "SUMMARY.md").write_text(re.sub(r"docs/\.\./", "", moved))


if __name__ == "__main__":
    if sys.argv[1:] == ["links"]:
        dead = list(dead_links())
        print("\n".join(dead), file=sys.stderr)
        sys.exit(1 if dead else 0)
    elif len(sys.argv) == 3 and sys.argv[1] == "source":
        source(sys.argv[2])
    else:
        sys.exit(__doc__)
