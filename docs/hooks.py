"""What `make docs` generates: the configuration's keys, the list of decisions, and linked files outside of docs/."""

import html
import json
import re
import sys
import warnings
from pathlib import Path, PurePosixPath
from posixpath import join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
KEYS = "<!-- The keys stand here in the site: `make docs`. -->"
# Where files that a page of the repository calls by one name lie in the site.
IN_SITE = {"README.md": "project.md", "docs/decisions": "decisions/index.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the decisions into the navigation."""
    assert config.nav is not None
    section = next(entry for entry in config.nav if "Decisions" in entry)
    section["Decisions"] = ["decisions/index.md", *(f"decisions/{path.name}" for path in decisions())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and its like, the list of decisions, and every file outside of docs/ that a page links to."""
    lines = [f"- [{title(path)}]({path.name})" for path in decisions()]
    content = "\n".join(["# Decisions", "", "Why things are as they are, a screen each.", "", *lines, ""])
    files.append(File.generated(config, "decisions/index.md", content=content))
    waiting = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    waiting += [linked for file in files if file.src_uri.endswith(".md") for linked in links(f"docs/{file.src_uri}")]
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/") and files.get_file_from_path(in_site(path)) is None and (ROOT / path).is_file():
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
            waiting += links(path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site; the keys of the configuration get their place."""
    names = {name: path for path, name in IN_SITE.items()}
    here = page.file.src_uri
    path = names.get(here) or (here if here in ("CHANGELOG.md", "CONTRIBUTING.md") else f"docs/{here}")
    path = here if here.startswith("benchmarks/") else path

    def rewritten(match: re.Match[str]) -> str:
        target = in_site(normpath(join(str(PurePosixPath(path).parent), match[1])))
        return relpath(target, PurePosixPath(here).parent) + (match[2] or "")

    if here != "decisions/index.md":  # it has no file in the repository
        markdown = LINK.sub(rewritten, markdown)
    return markdown.replace(KEYS, configuration()) if KEYS in markdown else markdown


def decisions() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("*.md"))


def title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def links(path: str) -> list[str]:
    """The paths in the repository that a page links to."""
    if not path.endswith(".md") or not (ROOT / path).is_file():
        return []
    found = LINK.findall((ROOT / path).read_text(encoding="utf-8"))
    return [normpath(join(str(PurePosixPath(path).parent), target)) for target, _ in found]


def in_site(path: str) -> str:
    return IN_SITE.get(path) or path.removeprefix("docs/")


def configuration() -> str:
    """Every section of a configuration file and of a feature schema, as Markdown tables."""
    sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, when torchrec is imported
        from rankmixer.launch.config.config import json_schema

    tree = json.loads(json_schema())
    models = tree["$defs"]
    lines = section("The file", tree, models, 2)
    for name, value in tree["properties"].items():
        if name != "feature_schema":
            lines += sections(name, model_of(value), models)
    lines += section("The feature schema", models["Schema"], models, 2)
    for kind, reference in models["Schema"]["properties"]["features"]["additionalProperties"]["discriminator"][
        "mapping"
    ].items():
        lines += section(f"kind: {kind}", models[name_of(reference)], models, 3)
    return "\n".join(lines + section("labels", models["Label"], models, 3))


def sections(name: str, model: str, models: dict[str, Any], level: int = 2) -> list[str]:
    """The table of a section, and those of the sections in it."""
    lines = section(name, models[model], models, level)
    for key, value in models[model]["properties"].items():
        if (inner := model_of(value)) is not None:
            lines += sections(f"{name}.{key}{'.NAME' if 'additionalProperties' in value else ''}", inner, models, 3)
    return lines


def section(name: str, model: dict[str, Any], models: dict[str, Any], level: int) -> list[str]:
    text = model["description"].partition("\n\n")[0].replace("\n", " ")
    lines = [
        "",
        f"{'#' * level} {name}",
        "",
        text,
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    required = model.get("required", [])
    for key, value in model["properties"].items():
        inner = model_of(value)
        meaning = value.get("description", "")
        default = "required" if key in required else f"`{json.dumps(value.get('default'))}`"
        if inner is not None:
            meaning = meaning or models[inner]["description"].partition("\n\n")[0]
            default = "required" if key in required else "" if value.get("default") else "none"
        if "const" in value:
            meaning = meaning or "says what the line is"
        assert meaning, f"{name}.{key} has no description; give its Field one"
        meaning = html.escape(meaning, quote=False).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{key}` | {type_of(value)} | {default.replace('`null`', 'none')} | {meaning} |")
    return lines


def model_of(value: dict[str, Any]) -> str | None:
    """The section that a key holds, or holds one of by name."""
    choices = [value, value.get("additionalProperties", {}), *value.get("anyOf", [])]
    return next((name_of(choice["$ref"]) for choice in choices if isinstance(choice, dict) and "$ref" in choice), None)


def name_of(reference: str) -> str:
    return reference.rpartition("/")[2]


def type_of(value: dict[str, Any]) -> str:
    """A type for a person: integer from 1, one of these, a list of those."""
    if "$ref" in value:
        return "a section"
    if "const" in value or "enum" in value:
        return " ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(type_of(choice) for choice in value["anyOf"] if choice.get("type") != "null"))
    if value["type"] == "array":
        parts = value.get("prefixItems")
        return f"[{', '.join(map(type_of, parts))}]" if parts else f"a list of {type_of(value['items'])}"
    if value["type"] == "object":
        return "sections by name"
    words = {"boolean": "true or false", "string": "text"}.get(value["type"], value["type"])
    least, above = value.get("minimum"), value.get("exclusiveMinimum")
    if above == 0 and value["type"] == "integer":
        least, above = 1, None
    most = value.get("maximum", value.get("exclusiveMaximum"))
    return (
        words
        + (f" from {least}" if least is not None else "")
        + (f" above {above}" if above is not None else "")
        + (f" to {most}" if most is not None and most < 1e9 else "")
    )
