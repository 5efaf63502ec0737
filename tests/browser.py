"""Pages in a real browser: headless Chromium through Playwright, skipped visibly where either is missing."""

from __future__ import annotations

__all__ = ["browser", "overlaps", "show"]

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Every line of text that can be seen: what it says, and where it is within what clips it.
_TEXTS = """(clips) => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const [node, parent] = [walker.currentNode, walker.currentNode.parentElement];
    const hidden = parent.closest('script, style, title, .fxg-aside-text') || !parent.checkVisibility();
    if (hidden || !node.data.trim()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const clip = (clips && parent.closest(clips) || document.documentElement).getBoundingClientRect();
    for (const rect of range.getClientRects()) {
      const [left, top] = [Math.max(rect.left, clip.left), Math.max(rect.top, clip.top)];
      const [right, bottom] = [Math.min(rect.right, clip.right), Math.min(rect.bottom, clip.bottom)];
      if (right > left && bottom > top) found.push([node.data.trim(), left, top, right, bottom]);
    }
  }
  return found;
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    if _CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=_CHROMIUM, args=list(_SWITCHES))
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; at the end no page has complained, asked for another file, or opened a dialogue."""
    complaints: list[str] = []
    opened = []

    def open_page(file: Path, width: int = 1280, height: int = 800, **context: Any) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": height}, **context)
        tab.set_default_timeout(5000)
        tab.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.extend([request.url] * (request.url != file.as_uri())))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.goto(file.as_uri())
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        tab.close()
    assert not complaints


def overlaps(tab: Any, clips: str = "") -> list[tuple[str, str]]:
    """Pairs of texts that lie on one another.

    Args:
        tab: An open page.
        clips: Selector of elements that hide what goes beyond them.
    """
    texts = sorted(tab.evaluate(_TEXTS, clips), key=lambda text: text[2])
    assert len(texts) > 20
    found = []
    for i, a in enumerate(texts):
        for b in itertools.takewhile(lambda text, bottom=a[4]: text[2] < bottom - 3, texts[i + 1 :]):
            # A line's box is taller than its letters.
            if min(a[3], b[3]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[2], b[2]) > 3:
                found.append((a[0], b[0]))
    return found
