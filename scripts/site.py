"""The documentation site: what `mkdocs build` adds to the pages in docs/.

    make docs        # site/index.html; `make docs-serve` shows it at http://localhost:8000

The README is its first page, each room of public names a page of the reference, and each experiment
a page of the papers, all made of what is there, so that none is forgotten. Formulas become MathML.
"""

import ast
import html
import re
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "models": ("Models", ("vae", "hierarchical", "deep", "conditional")),
    "posteriors": ("Posteriors", ("posteriors",)),
    "priors": ("Priors", ("priors",)),
    "networks": ("Networks", ("networks",)),
    "likelihoods": ("Likelihoods", ("likelihoods",)),
    "objectives": ("Objectives", ("objectives",)),
    "data": ("Data", ("data",)),
    "training": ("Training", ("experiment", "train", "grid", "errors")),
    "runs": ("Trained models", ("run", "generate", "fitted_priors")),
    "evaluation": ("Evaluation", ("evaluation", "metrics")),
    "figures": ("Figures", ("plots",)),
}
"""The pages of the reference: a title, and the rooms of `vae_jax` whose public names it has."""
OF_PARTS = ("posteriors", "priors", "networks", "likelihoods", "objectives")
GUIDES = {
    "Learn": ["index.md", "folder.md", "extending.md", "math.md", "gallery.md"],
    "Use": ["scaling.md", "quality.md", "performance.md"],
    "Trust": ["trust.md", "results.md", "architecture.md", "CONTRIBUTING.md", "CHANGELOG.md"],
}


def public_names() -> dict[str, list[str]]:
    """The dotted names of what `import vae_jax` offers, by the page that shows them."""
    found: dict[str, list[str]] = {page: [] for page in PAGES}
    for line in ast.parse((ROOT / "vae_jax" / "__init__.pyi").read_text()).body:
        if not isinstance(line, ast.ImportFrom):
            continue
        for alias in line.names:
            dotted = f"{line.module}.{alias.name}" if line.module else alias.name
            room = dotted.partition(".")[0]
            (page,) = (page for page, (_, rooms) in PAGES.items() if room in rooms)
            found[page].append(f"vae_jax.{dotted}")
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
        rest = re.sub(r"\n\nOurs: ", "\n\n**Ours**: ", re.sub(r"(^|\n\n)Published: ", r"\1**Published**: ", rest))
        options = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
        options += "      show_docstring_description: true\n"
        functions = "\n".join(
            f"::: experiments.{file.stem}.{name}\n"
            for name in ("experiment", "figures")
            if f"\ndef {name}(" in file.read_text()
        )
        found[f"papers/{file.stem}.md"] = f"# {title}\n\n{rest}\n\n{functions}"
    return found


def first_page() -> str:
    """The README, its links those of the site."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)(?!docs/)[^)]*\)", r"\1", text)
    return re.sub(r"(\]\(|src=\")docs/", r"\1", text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation."""
    guides = [{title: pages} for title, pages in GUIDES.items()]
    reference_pages = [{title: f"reference/{page}.md"} for page, (title, _) in PAGES.items()]
    titled = [{Path(page).stem.replace("_", " "): page} for page in papers()]
    config.nav = [*guides, {"Papers": titled}, {"Reference": reference_pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made."""
    made = {"index.md": first_page(), **papers()}
    made |= {f"reference/{page}.md": reference(page) for page in PAGES}
    for address, content in made.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def as_mathml(match: re.Match[str]) -> str:
        kind = "block" if match[1] == "div" else "inline"
        formula = html.unescape(match[2]).strip()[2:-2]
        return convert(formula, display=kind)

    pattern = r'<(span|div) class="arithmatex">(.*?)</\1>'
    return re.sub(pattern, as_mathml, content, flags=re.DOTALL)


class FieldsAreArguments(griffe.Extension):
    """Shows the fields of a Linen module, with their defaults, as its constructor's arguments."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object) -> None:
        """Give each class of fields a constructor."""
        for module in [pkg, *_modules(pkg)]:
            for cls in module.classes.values():
                if not cls.is_alias and "__init__" not in cls.members:
                    _add_constructor(cls)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    below = [each for each in module.modules.values() if not each.is_alias]
    return [*below, *(other for each in below for other in _modules(each))]


def _add_constructor(cls: griffe.Class) -> None:
    fields: dict[str, griffe.Attribute] = {}
    for base in [*reversed(cls.mro()), cls]:
        for name, member in base.attributes.items():
            if member.annotation is not None and not name.startswith("_"):
                fields[name] = member
    if not fields:
        return
    parameters = griffe.Parameters(
        griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword),
        *(
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.positional_or_keyword,
                default=field.value,
            )
            for name, field in fields.items()
        ),
    )
    cls.set_member("__init__", griffe.Function("__init__", parameters=parameters, parent=cls))
