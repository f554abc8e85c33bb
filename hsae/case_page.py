"""Case studies as Markdown and as a page; text of the corpus stays text in both."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from hsae.case_studies import ALIKE, CRITERIA, Material, summarize, visible


def inert(text: str) -> str:
    """Text as a piece of code that is inert in Markdown and HTML: entities for all but letters and digits."""
    characters = (c if c.isascii() and c.isalnum() else f"&#{ord(c)};" for c in visible(text))
    return f"<code>{''.join(characters)}</code>"


def markdown(material: Material, cases: list[dict[str, Any]], **content: Any) -> str:
    """The case studies as Markdown (templates/case_studies.md), the last case as that which fails."""
    environment = Environment(
        loader=PackageLoader("hsae"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["inert"] = inert
    template = environment.get_template("case_studies.md")
    counts = summarize(material, cases)
    return template.render(criteria=CRITERIA, alike=ALIKE, counts=counts, cases=cases, **content).rstrip() + "\n"


def page(text: str) -> str:
    """The same Markdown as a page."""
    body = MarkdownIt("commonmark").enable("table").render(text)
    environment = Environment(loader=PackageLoader("hsae"), undefined=StrictUndefined, autoescape=True)
    return environment.get_template("case_studies.html").render(body=Markup(body))
