"""The README shows the study that is really the default, and names files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_study_shown_is_the_default_one() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", README, re.S)
    study = (ROOT / "configs/studies/laptop.yaml").read_text(encoding="utf-8")
    assert "".join(line for line in study.splitlines(keepends=True) if not line.startswith("#")) in shown


def test_every_linked_file_exists() -> None:
    for text, folder in ((README, ROOT), *((path.read_text(), path.parent) for path in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (folder / target).exists(), target


def test_the_listing_names_every_module_that_exists() -> None:
    listing = next(block for block in re.findall(r"```text\n(.*?)```", README, re.S) if "moecap/" in block)
    for path in sorted([*(ROOT / "moecap").iterdir(), *(ROOT / "cluster").glob("*.py")]):
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            assert path.name in listing, path
