"""Get a checkout ready to be built for PyPI: absolute links in the README, and the project's addresses.

    python tools/release.py https://host/owner/prunegate

Links in the repository are relative, so that they work wherever it is. On PyPI there is nothing for them to lead to.
The two files are changed in place: use a checkout for this alone.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def absolute(text: str, url: str, revision: str) -> str:
    """A README whose links lead to files of a revision.

    Args:
        url: Of the repository.
        revision: A tag or branch.
    """

    def lead(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        label = _LINK.sub(lead, label)
        if "://" not in target and not target.startswith(("#", "mailto:")):
            target = f"{url}/{'raw' if mark else 'blob'}/{revision}/{target}"
        return f"{mark}[{label}]({target})"

    return _LINK.sub(lead, text)


def with_urls(project: str, url: str) -> str:
    """``pyproject.toml`` with the table of addresses."""
    table = (
        "[project.urls]\n"
        f'Homepage = "{url}"\nRepository = "{url}"\nIssues = "{url}/issues"\nChangelog = "{url}#changelog"\n'
    )
    return project.replace("[project.scripts]\n", f"{table}\n[project.scripts]\n", 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the repository, without a slash at its end")
    parser.add_argument("--revision", help="by default the tag of the present version")
    options = parser.parse_args()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "prunegate" / "version.py").read_text())
    assert version is not None
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(), options.url.rstrip("/"), options.revision or f"v{version[1]}"))
    project.write_text(with_urls(project.read_text(), options.url.rstrip("/")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
