"""Debian's Chromium for tests of the pages. `PAGE_SCREENSHOTS=FOLDER` keeps pictures for a person to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--no-sandbox",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

PATIENCE_MS = 180_000  # no rule: a busy machine paints late
expect.set_options(timeout=PATIENCE_MS)

needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent: apt-get install --no-install-recommends chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of which every script error is a failure of the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    context.close()
    assert errors == []


def keep(page: Page, name: str) -> None:
    """A picture, where somebody wants one."""
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


# Every element with text of its own, against the nearest background that is painted (WCAG 2.1, relative luminance).
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.checkVisibility() && !node.closest(".unseen, svg") && !node.disabled
      && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .map((node) => {
      const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
      return [node.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    })
    .filter(([, contrast]) => contrast < 4.5);
}"""

# Every word of the badge with the page's time, and the page's time of the newest trade on the tape.
WITNESS = """
  window.said = []; window.tradedAt = 0;
  addEventListener("DOMContentLoaded", () => {
    const badge = document.getElementById("feed-state"), tape = document.getElementById("tape-rows");
    new MutationObserver(() => said.push([performance.now(), badge.dataset.state, badge.textContent]))
      .observe(badge, {attributes: true, childList: true});
    new MutationObserver(() => { tradedAt = performance.now(); })
      .observe(tape, {subtree: true, childList: true, characterData: true});
  });
"""
