"""Every committed page as a reader sees it: nbviewer's kind of HTML in a real browser, without the network.

Screenshots are kept in `build/render/` for a look. MathJax comes from the network, so formulas stay TeX here; that they
can be set is checked as text (`formulas`).
"""

import pytest

from lib import notebooks, paths, storage
from tests import browser, formulas

PAGES = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
WIDTH = 1000  # CSS pixels of the window
LOOK = """(() => {
  const width = document.documentElement.clientWidth, wide = [], texts = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const cut = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX != "visible";
    if (cut || box.right > width + 1 || box.left < -1)
      wide.push(`${element.tagName} ${element.className}: ${element.textContent.trim().slice(0, 60)}`);
  }
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode())
    if (walk.currentNode.data.includes("$") && !walk.currentNode.parentElement.closest("code, pre, script, style"))
      texts.push(walk.currentNode.data);
  const images = [...document.images];
  return {
    wide, texts, across: document.documentElement.scrollWidth - width, count: images.length,
    missing: images.filter(image => !image.naturalWidth).length,
    mute: images.filter(image => image.alt.length < 30 || image.alt.startsWith("No description")).length,
    errors: document.querySelectorAll(".output_error, .output_stderr, [data-mime-type*=error]").length,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
    heading: document.querySelector("h1")?.textContent ?? "", code: document.querySelectorAll(".highlight").length,
  };
})()"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.program() is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.tab(tmp_path_factory.mktemp("browser") / "home", WIDTH) as found:
        yield found


def seen(tab, tmp_path, html):
    storage.write_text(tmp_path / "page.html", html)
    tab.open(tmp_path / "page.html")
    return tab.value(LOOK)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_in_a_browser(tab, tmp_path, path):
    found = seen(tab, tmp_path, notebooks.to_html(path))
    tab.screenshot(paths.BUILD / "render" / f"{path.stem}.png")
    assert found["heading"]
    assert found["code"]
    assert (found["missing"], found["mute"], found["errors"]) == (0, 0, 0)
    assert found["count"] == path.read_text(encoding="utf-8").count('"image/png": "')
    assert found["loaded"] == []
    assert [problem for text in found["texts"] for problem in formulas.problems(text)] == []
    assert (found["across"], found["wide"]) == (0, [])


def test_the_look_sees_what_is_wrong(tab, tmp_path):
    """A page with one of every fault."""
    body = """<h1>x</h1><img src="nowhere.png" alt="short"><p>it costs $5</p><p>fine: $x$</p><pre>$HOME</pre>
    <div style="overflow: auto; width: 500px"><table style="width: 800px"><tr><td>cut</td></tr></table></div>
    <p style="width: 2000px">wide</p><div class="output_error">no</div><div class="highlight">code</div>"""
    found = seen(tab, tmp_path, f"<html><body style='margin: 0'>{body}</body></html>")
    assert (found["missing"], found["mute"], found["errors"], found["count"]) == (1, 1, 1, 1)
    assert found["across"] == 2000 - WIDTH
    assert [line.split(" ")[0] for line in found["wide"]] == ["DIV", "P"]
    assert len([problem for text in found["texts"] for problem in formulas.problems(text)]) == 1
    assert len(found["texts"]) == 2
    assert [name.rsplit("/", 1)[1] for name in found["loaded"]] in (["nowhere.png"], [])
