"""The documentation site: what `mkdocs build` adds to the pages in docs/.

    make docs        # the folder site/; `.venv/bin/mkdocs serve` shows it at http://localhost:8000

The README becomes the first page; each notebook, each group of public names (in the reference) and
each experiment (under papers) becomes a page of its own. All are generated from the repository, so
that none is forgotten. Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # of the extra `docs`; the names of the pages are tested without it
    from mkdocs.config.defaults import MkDocsConfig  # pyright: ignore[reportMissingImports]
    from mkdocs.structure.files import Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
PAGES = {
    "models": ("Models", ("vae", "hierarchical", "deep", "interfaces", "conditional")),
    "posteriors": ("Posteriors", ("posteriors",)),
    "priors": ("Priors", ("priors",)),
    "networks": ("Networks", ("networks",)),
    "likelihoods": ("Likelihoods", ("likelihoods",)),
    "objectives": ("Objectives", ("objectives",)),
    "data": ("Data", ("data",)),
    "training": ("Training", ("experiment", "train", "grid", "second_stage", "errors")),
    "runs": ("Trained models", ("run", "generate", "fitted_priors")),
    "evaluation": ("Evaluation", ("evaluation", "metrics", "report")),
    "figures": ("Figures", ("plots",)),
}
"""The pages of the reference: a title, and the modules of `vae_jax` whose public names it shows."""
OF_PARTS = ("posteriors", "priors", "networks", "likelihoods", "objectives")
GUIDES = {
    "Learn": ["index.md", "folder.md", "extending.md", "math.md", "gallery.md"],
    "Use": ["scaling.md", "quality.md", "performance.md"],
    "Trust": ["trust.md", "results.md", "architecture.md", "CONTRIBUTING.md", "CHANGELOG.md"],
}


def public_names() -> dict[str, list[str]]:
    """The dotted names of the public objects of `vae_jax`, by the page that shows them."""
    found: dict[str, list[str]] = {page: [] for page in PAGES}
    for line in ast.parse((ROOT / "vae_jax" / "__init__.pyi").read_text()).body:
        if not isinstance(line, ast.ImportFrom):
            continue
        for alias in line.names:
            dotted = f"{line.module}.{alias.name}" if line.module else alias.name
            room = dotted.partition(".")[0]
            (page,) = (page for page, (_, rooms) in PAGES.items() if room in rooms)
            found[page].append(f"vae_jax.{dotted}")
    for page, (_, rooms) in PAGES.items():
        found[page].sort(key=lambda name: rooms.index(name.split(".")[1]))
    found["training"].append("vae_jax.optimizers")
    return found


def reference(page: str) -> str:
    """The Markdown of a page of the reference."""
    title, _ = PAGES[page]
    lines = [f"# {title}", ""]
    for name in public_names()[page]:
        lines += [f"::: {name}"]
        if page in OF_PARTS:
            lines += ["    options:", "      members: false"]
        lines += [""]
    return "\n".join(lines)


def papers() -> dict[str, str]:
    """The Markdown of a page for each experiment, by its address."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "experiments").glob("*.py")):
        summary, _, rest = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")
        title = " ".join(summary.split()).rstrip(".")
        rest = re.sub(r"^(Published|Ours): ", r"**\1**: ", rest, flags=re.MULTILINE)
        functions = "\n".join(
            f"::: experiments.{file.stem}.{name}\n"
            for name in ("experiment", "figures")
            if f"\ndef {name}(" in file.read_text()
        )
        found[f"papers/{file.stem}.md"] = f"# {title}\n\n{rest}\n\n{functions}"
    return found


def notebooks() -> dict[str, str]:
    """The Markdown of a page for each notebook, by its address."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "notebooks").glob("*.py")):
        lines: list[str] = []
        _, *cells = re.split(r"^# %%", file.read_text(), flags=re.MULTILINE)
        for cell in cells:
            kind, _, text = cell.partition("\n")
            if "markdown" in kind:
                lines += [re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip(), ""]
            else:
                lines += ["```python", text.strip(), "```", ""]
        found[f"notebooks/{file.stem}.md"] = "\n".join(lines)
    return found


def first_page() -> str:
    """The README, with its links adapted to the site."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)(?!docs/)[^)]*\)", r"\1", text)
    return re.sub(r"(\]\(|src=\")docs/", r"\1", text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation."""
    guides = [{title: pages} for title, pages in GUIDES.items()]
    reference_pages = [{title: f"reference/{page}.md"} for page, (title, _) in PAGES.items()]
    named = [
        {title: [{Path(page).stem.replace("_", " "): page} for page in made]}
        for title, made in (("Notebooks", notebooks()), ("Papers", papers()))
    ]
    config.nav = [*guides, *named, {"Reference": reference_pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The generated pages."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    made = {"index.md": first_page(), **notebooks(), **papers()}
    made |= {f"reference/{page}.md": reference(page) for page in PAGES}
    for address, content in made.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Formulas as MathML."""
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]

    def as_mathml(match: re.Match[str]) -> str:
        kind = "block" if match[1] == "div" else "inline"
        formula = html.unescape(match[2]).strip()[2:-2]
        return convert(formula, display=kind)

    pattern = r'<(span|div) class="arithmatex">(.*?)</\1>'
    return re.sub(pattern, as_mathml, content, flags=re.DOTALL)
