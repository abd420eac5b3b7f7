"""What the site is made of besides `docs/`: files that live elsewhere in the repository, and a page for each room.

A link in a page is written as it is right in the repository, so that it works on a code-hosting site too. The site
holds the same files under the same paths, without the leading `docs/`, and links are turned to those.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

import rgb2pc_lib

PROJECT = Path(__file__).resolve().parents[1]
LIBRARY = PROJECT / "rgb2pc_lib"
CARDS = ["data/README.md", "data/teacher/README.md", "data/simdepth/README.md"]
PAGES = [*CARDS, "benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
HOMES = {name: f"rgb2pc_lib.{home}" for name, home in rgb2pc_lib._HOME.items()}  # of the public names
LINK = re.compile(r"(\]\()([^)\s#]+)")
NAME = re.compile(r"^::: rgb2pc_lib\.(\w+)$", re.MULTILINE)


def on_files(files, config):
    """Called once the files of `docs/` are listed: the others join them."""
    pictures = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("figures/*.png"))
    for name in [*PAGES, *pictures]:
        files.append(File(name, str(PROJECT), config.site_dir, config.use_directory_urls))
    for room in sorted(path.parent for path in LIBRARY.glob("*/**/__init__.py")):
        name = ".".join(room.relative_to(LIBRARY).parts)
        files.append(File.generated(config, f"api/{name}.md", content=room_page(room)))
    return files


def room_page(room: Path) -> str:
    """The reference of a room: its one sentence, then its modules, without what the public face has already."""
    name = ".".join(room.relative_to(PROJECT).parts)
    says = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    parts = [f"# {room.relative_to(LIBRARY)}", says]
    for module in sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__"):
        public = [each for each, home in HOMES.items() if home == f"{name}.{module}"]
        hidden = "".join(f', "!^{each}$"' for each in public)
        parts.append(f'::: {name}.{module}\n    options: {{heading_level: 2, filters: ["!^_"{hidden}]}}')
        parts += [f"[`{each}`][{name}.{module}.{each}] is part of the public face." for each in public]
    return "\n\n".join(parts)


def on_page_markdown(markdown, page, config, files):
    """Called with the text of every page: links into the repository, and public names, are turned to where they are."""
    here = PurePosixPath(page.file.src_uri).parent
    folder = "docs" / here if page.file.src_dir == config.docs_dir else here

    def turned(link: re.Match) -> str:
        if ":" in link[2]:
            return link[0]
        found = os.path.normpath(folder / link[2]).removeprefix("docs/").replace(".ipynb", ".md")
        return link[1] + os.path.relpath(found, here)

    return NAME.sub(lambda name: f"::: {HOMES[name[1]]}.{name[1]}", LINK.sub(turned, markdown))
