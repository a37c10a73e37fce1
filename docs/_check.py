"""Looks at every page of the built site in a browser, offline: `make docs-check`.

    python docs/_check.py site [--screenshots DIR]
    python docs/_check.py               starts a browser, and fails if there is none

Each page is loaded wide and in the light theme, then narrow and in the dark one. Faults
are errors and warnings in the console, where every request ends up that fails or leaves
the site; formulas that stay TeX; pages that scroll sideways; and, in the wide view,
boxes that cut off what they hold. The browser is $CHROMIUM, the system's or that of
Playwright.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import http.server
import itertools
import os
import pathlib
import shutil
import sys
import threading

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    TimeoutError,
    sync_playwright,
)


VIEWS = {
    "wide": dict(viewport=dict(width=1400, height=900), color_scheme="light"),
    "narrow": dict(viewport=dict(width=420, height=900), color_scheme="dark"),
}
BROWSERS = 2
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
NO_BROWSER = """\
No browser to check the pages in. Install Chromium, one of
    sudo apt install chromium                  (Debian)
    {python} -m playwright install chromium    (everywhere)
or set CHROMIUM to the path of a Chromium, Chrome or Edge that you have."""

RENDERED = "!document.querySelector('.arithmatex:not(:has(.katex))')"

# What is wrong with how the page looks, a line each.
FAULTS = r"""
(wide) => {
  const name = (element) => {
    const text = element.textContent.trim().replace(/\s+/g, " ").slice(0, 50);
    return `<${element.localName} class="${element.className}"> ${text}`;
  };
  const faults = [];

  const text = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (text.nextNode()) {
    const skipped = "pre, code, script, style, noscript, template, .katex";
    const raw = /\$|\\[([a-zA-Z]/.test(text.currentNode.data);
    if (raw && !text.currentNode.parentElement.closest(skipped))
      faults.push(`a formula is not rendered: ${text.currentNode.data.trim()}`);
  }

  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    faults.push(`the page scrolls sideways, ${root.scrollWidth} px`);
  const clips = (element) => getComputedStyle(element).overflowX !== "visible";
  // KaTeX has a copy of each formula for screen readers, hidden by a box of 1 px.
  const shown = (element) => !element.closest(".katex-mathml");
  for (const element of [...document.querySelectorAll("article *")].filter(shown)) {
    const hidden = element.scrollWidth - element.clientWidth;
    if (wide && clips(element) && element.clientWidth && hidden > 0)
      faults.push(`${hidden} px are cut off in ${name(element)}`);
    let box = element;
    while (box !== document.body && !clips(box)) box = box.parentElement;
    const outside = element.getBoundingClientRect().right - root.clientWidth;
    if (box === document.body && outside > 1)
      faults.push(`${Math.round(outside)} px are off the page of ${name(element)}`);
  }
  return faults;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=pathlib.Path, nargs="?")
    parser.add_argument("--screenshots", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.site:
        return check(arguments.site, arguments.screenshots)
    with sync_playwright() as playwright, launch(playwright) as browser:
        print(f"{browser.browser_type.name} {browser.version}")
    return 0


def check(site: pathlib.Path, screenshots: pathlib.Path | None) -> bool:
    """Whether any page has a fault; each is printed."""
    pages = sorted(
        str(page.relative_to(site)).removesuffix("index.html")
        for page in site.rglob("index.html")
    )
    if not pages:
        sys.exit(f"No page in {site}: build the site first, by `make docs`.")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        every = [(view, path) for view in VIEWS for path in pages]
        # Most of the time a page waits for its network to be silent. Playwright stays
        # in one thread, so each has its own browser.
        with concurrent.futures.ThreadPoolExecutor(BROWSERS) as pool:
            some = [every[i::BROWSERS] for i in range(BROWSERS)]
            found = pool.map(functools.partial(visit, home, screenshots), some)
            faults = sorted(itertools.chain.from_iterable(found))
        server.shutdown()
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(pages)} pages, {len(VIEWS)} views, {len(faults)} faults")
    return bool(faults)


def visit(
    home: str, screenshots: pathlib.Path | None, some: list[tuple[str, str]]
) -> list[str]:
    """The faults of some pages, each in a view, in a browser of their own."""
    faults = []
    with sync_playwright() as playwright, launch(playwright) as browser:
        # One tab for each view: a new one for each page takes twice the time.
        tabs = {view: browser.new_page(**VIEWS[view]) for view in VIEWS}
        for page in tabs.values():
            # What leaves the site fails, and is reported as a failed request.
            page.route(
                lambda url: not url.startswith(home), lambda route: route.abort()
            )
        for view, path in some:
            page = tabs[view]
            found = look(page, home + path, view == "wide")
            faults += [f"{path or 'home'}, {view}: {fault}" for fault in found]
            if screenshots:
                name = path.strip("/").replace("/", "-") or "home"
                file = screenshots / f"{name}-{view}.png"
                page.screenshot(path=file, full_page=True)
    return faults


def launch(playwright: Playwright) -> Browser:
    found = filter(None, map(shutil.which, NAMES))
    path = os.environ.get("CHROMIUM") or next(found, None)
    if path is None and not pathlib.Path(playwright.chromium.executable_path).exists():
        sys.exit(NO_BROWSER.format(python=sys.executable))
    # Root has no sandbox; the pages are our own.
    return playwright.chromium.launch(executable_path=path, chromium_sandbox=False)


def look(page: Page, url: str, wide: bool) -> list[str]:
    """What is wrong with a page, in words."""
    faults: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            text = message.text.partition("\n")[0]
            faults.append(f"{text} ({message.location['url']})")

    def fail(error: Error) -> None:
        faults.append(str(error))

    page.on("console", hear)
    page.on("pageerror", fail)
    try:
        page.goto(url, wait_until="networkidle", timeout=60_000)
        # A busy machine renders later. What stays is a fault, which is found below.
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(RENDERED, timeout=5000)
        return faults + page.evaluate(FAULTS, wide)
    except Error as error:
        return [error.message]
    finally:
        page.remove_listener("console", hear)
        page.remove_listener("pageerror", fail)


if __name__ == "__main__":
    sys.exit(main())
