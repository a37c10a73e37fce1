"""Opens every page of the built site in a browser, without a network: `make docs-check`.

    python docs/_check.py site [--screenshots DIR]

Each page is loaded wide and in the light theme, then narrow and in the dark one. It fails
on errors and warnings in the console, requests that fail or leave the site, formulas
that stay TeX, pages that scroll sideways, and, where it is wide, boxes that cut off what
is in them. The browser is $CHROMIUM, or the system's, or Playwright's own.
"""

import argparse
import functools
import http.server
import os
import pathlib
import shutil
import sys
import threading

from playwright.sync_api import Error, Page, sync_playwright


VIEWS = {
    "wide": dict(viewport=dict(width=1400, height=900), color_scheme="light"),
    "narrow": dict(viewport=dict(width=420, height=900), color_scheme="dark"),
}
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
NO_BROWSER = """\
No browser to check the pages in. Install Chromium, one of
    sudo apt install chromium                  (Debian)
    {python} -m playwright install chromium    (everywhere)
or set CHROMIUM to the path of a Chromium, Chrome or Edge that you have."""

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
  for (const error of document.querySelectorAll(".katex-error"))
    faults.push(error.title);

  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    faults.push(`the page scrolls sideways, ${root.scrollWidth} px`);
  const clips = (element) => getComputedStyle(element).overflowX !== "visible";
  // KaTeX has a copy of each formula for screen readers, hidden by a box of 1 px.
  const shown = (element) => !element.closest(".katex-mathml");
  for (const element of [...document.querySelectorAll("article *")].filter(shown)) {
    const box = element.getBoundingClientRect();
    if (wide && clips(element) && box.width && element.scrollWidth > element.clientWidth)
      faults.push(`cut off, ${element.scrollWidth - element.clientWidth} px: ${name(element)}`);
    let ancestor = element;
    while (ancestor && !clips(ancestor)) ancestor = ancestor.parentElement;
    if (!ancestor && box.right > root.clientWidth + 1)
      faults.push(`reaches out of the page, ${Math.round(box.right)} px: ${name(element)}`);
  }
  return faults;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    pages = sorted(
        str(page.relative_to(arguments.site)).removesuffix("index.html")
        for page in arguments.site.rglob("index.html")
    )
    if not pages:
        sys.exit(f"No page in {arguments.site}: build the site first, by `make docs`.")

    handler = functools.partial(Quiet, directory=arguments.site)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        faults = 0
        with launch(playwright) as browser:
            for view, options in VIEWS.items():
                context = browser.new_context(**options)
                # What leaves the site fails, and is reported as a failed request.
                context.route(
                    lambda url: not url.startswith(home), lambda route: route.abort()
                )
                for path in pages:
                    page = context.new_page()
                    for fault in look(page, home + path, view == "wide"):
                        print(f"{path or 'home'}, {view}: {fault}")
                        faults += 1
                    if arguments.screenshots:
                        file = f"{path.strip('/').replace('/', '-') or 'home'}-{view}.png"
                        page.screenshot(
                            path=arguments.screenshots / file, full_page=True
                        )
                    page.close()
        server.shutdown()
    print(f"{len(pages)} pages, {len(VIEWS)} views, {faults} faults")
    return faults > 0


def launch(playwright):
    found = filter(None, map(shutil.which, NAMES))
    path = os.environ.get("CHROMIUM") or next(found, None)
    if path is None and not pathlib.Path(playwright.chromium.executable_path).exists():
        sys.exit(NO_BROWSER.format(python=sys.executable))
    # Root has no sandbox; the pages are our own.
    return playwright.chromium.launch(executable_path=path, chromium_sandbox=False)


def look(page: Page, url: str, wide: bool) -> list[str]:
    """What is wrong with a page, in words."""
    faults = []
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning") and faults.append(message.text)
        ),
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "requestfailed", lambda request: faults.append(f"{request.url}: {request.failure}")
    )
    try:
        page.goto(url, wait_until="load")
    except Error as error:
        return [error.message]
    page.evaluate("document.fonts.ready")
    return faults + page.evaluate(FAULTS, wide)


if __name__ == "__main__":
    sys.exit(main())
