"""What the site is made of besides `docs/`: pages and pictures that live elsewhere in the repository.

A link in a page is written as it is right in the repository, so that it works on a code-hosting site too. The site
holds the same files under the same paths, without the leading `docs/`, and links are turned to those.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

PROJECT = Path(__file__).resolve().parents[1]
PAGES = ["data/README.md", "data/teacher/README.md", "benchmarks/README.md"]
LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_files(files, config):
    """Called once the files of `docs/` are listed: the others join them."""
    pictures = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("figures/*.png"))
    for name in [*PAGES, *pictures]:
        files.append(File(name, str(PROJECT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Called with the text of every page: links into the repository become links into the site."""
    here = PurePosixPath(page.file.src_uri).parent
    folder = "docs" / here if page.file.src_dir == config.docs_dir else here

    def turned(link: re.Match) -> str:
        target = link[2]
        if ":" in target:
            return link[0]
        found = os.path.normpath(folder / target).removeprefix("docs/").replace(".ipynb", ".md")
        return link[1] + os.path.relpath(found, here)

    return LINK.sub(turned, markdown)
