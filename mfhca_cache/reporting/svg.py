"""An SVG file of matplotlib's → an ``<svg>`` element that lives in an HTML page.

Its colours become CSS variables of the same names, so that it follows the page from light to dark; its text takes the
page's font; its names are made the page's own; what a browser does not need is left out.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mfhca_cache.reporting.style import COLOURS

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_LEFT_OUT = ("metadata", "style", "title")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"font(?:-family)?:[^;]*?'[^;]*")


def inline(text: str, name: str, alt: str) -> str:
    """The element, as markup to be put into a page without escaping.

    Args:
        text: what ``Figure.savefig(format="svg")`` wrote; it is parsed, and text in it stays text.
        name: goes before every name in it; unique in the page.
        alt: the element's label.
    """
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"(?:#|url\(#)([\w-]+)", text))
    for parent in root.iter():
        for child in [c for c in parent if c.tag.removeprefix(_SVG) in _LEFT_OUT]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = {key.removeprefix(_XLINK): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                if value in used:
                    element.set(key, f"{name}-{value}")
            elif key == "href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif key == "href" or (key == "style" and not value):
                element.set(key, value) if value else None
            else:
                element.set(key, _restyled(value, name))
        if element.tag != "text" and element.text is not None and not element.text.strip():
            element.text = None
        if element.tail is not None and not element.tail.strip():
            element.tail = None
    _hoist(root)
    width, height = (float(root.attrib.pop(key).removesuffix("pt")) for key in ("width", "height"))
    root.attrib.pop("version", None)
    # At most a quarter larger than at 96 dots an inch: lines stay fine, and text is no larger than the page's.
    root.set("style", f"max-width:{width * 96 / 72 * 1.25:.0f}px")
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")


def _restyled(value: str, name: str) -> str:
    """Fewer decimals, CSS variables for colours and the font, and our names."""
    value = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    value = value.replace("url(#", f"url(#{name}-")
    for colour, code in COLOURS.items():
        value = value.replace(code, f"var(--{colour})")
    return _FONT.sub(_font, value)


def _font(found: re.Match[str]) -> str:
    """``font: 700 8px 'DejaVu Sans', …`` → the page's font in that size and weight."""
    head = found[0].split("'")[0].rstrip()
    return f"{head} var(--sans)"


def _hoist(root: ElementTree.Element) -> None:
    """Where all marks of a group look the same, say how they look once."""
    for group in root.iter("g"):
        styles = {child.get("style", "") for child in group if child.tag == "use"}
        if len(group) > 1 and len(styles) == 1 and all(child.tag == "use" for child in group):
            style = styles.pop()
            if style and not group.get("style"):
                group.set("style", style)
                for child in group:
                    child.attrib.pop("style", None)
