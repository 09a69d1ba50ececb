"""The page is self-contained, and works in a real browser."""

import base64
import html.parser
import io
import json
import pathlib
import shutil
import subprocess
import urllib.parse

import numpy as np
import PIL.Image
import pytest

from mtlora_jax.predict.gallery import MAX_PIXELS, MAX_SIDE, MIN_SIDE, Gallery, choose_side
from mtlora_jax.predict.panels import View
from mtlora_jax.tasks import make_tasks

CLASSES = ("background", "<b>cat & dog</b>", "bird")
TASKS = make_tasks(["semseg", "human_parts", "sal", "depth"], {"semseg": CLASSES})
NAMES = ("first", 'a "b" & <i>c #1?', *(f"later {index}" for index in range(10)))
BARE = "later 9"  # has no label, though others do
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), "")
# No start page, no updates, no account: the browser talks to nobody.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--window-size=1000,800", "--enable-logging=stderr"),
)


def example(number, size=(60, 90)):
    """A photograph and its views; each picture differs from the others."""
    rng = np.random.default_rng(number)
    photograph = rng.integers(0, 256, (*size, 3), np.uint8)
    classes = np.full(size, number % 2, np.uint8)
    classes[: size[0] // 2] = 2
    saliency, depth = rng.random((*size, 1)), rng.uniform(0, 10, size)
    values = {"semseg": classes, "human_parts": classes, "sal": saliency, "depth": depth}
    labels = {} if NAMES[number] == BARE else {"semseg": np.where(classes == 2, 255, classes), "sal": classes // 2}
    return photograph, {name: View.create(task, values[name], labels.get(name)) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page on disk, with the predictions it links to beside it."""
    folder = tmp_path_factory.mktemp("gallery")
    gallery = Gallery("run/best", "a <method>", list(TASKS), len(NAMES), labelled=True)
    for number, name in enumerate(NAMES):
        photograph, views = example(number)
        gallery.add(name, photograph, views, {task: f"{task}/{name}.png" for task in TASKS})
        for task in TASKS:
            (folder / task).mkdir(exist_ok=True)
            PIL.Image.fromarray(views[task].prediction).save(folder / task / f"{name}.png")
    (folder / "index.html").write_text(gallery.page())
    return folder / "index.html"


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, text, and the pictures in scripts with JSON; every tag must be closed."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, page):
        super().__init__()
        self.tags, self.pictures, self.text, self._open = [], [], "", []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if attributes.get("type") == "application/json":
            self.pictures.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.text += data

    def having(self, attribute):
        return [(tag, attributes[attribute]) for tag, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def read(page):
    return Reader(page.read_text())


def test_names_are_no_markup(read):
    assert [value for tag, value in read.having("data-name")] == list(NAMES)
    assert "<b>cat & dog</b>" in read.text
    assert not [tag for tag, attributes in read.tags if tag == "b"]


def test_what_a_model_is_called_is_no_markup():
    hostile = '</script><script>alert(1)</script><b a="'
    gallery = Gallery(hostile, f"{hostile}, predicts", ["semseg"], 1, labelled=False)
    photograph, views = example(0)
    gallery.add(hostile, photograph, {"semseg": views["semseg"]}, {"semseg": f"semseg/{hostile}.png"})
    read = Reader(gallery.page())
    assert "alert(1)" in read.text
    assert not [tag for tag, _ in read.tags if tag == "b"]
    assert len([tag for tag, _ in read.tags if tag == "script"]) == gallery.page().count("</script>")


def test_nothing_comes_from_elsewhere(page, read):
    text = page.read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert read.having("src") == []  # pictures get theirs from the page
    assert [value for tag, value in read.having("href")] == ["data:,"]
    assert "default-src 'none'; img-src data:;" in text


def test_every_picture_is_there(page, read):
    wanted = {"photograph", *TASKS, "semseg label", "sal label"}
    assert len(read.pictures) == len(NAMES)
    for name, pictures in zip(NAMES, read.pictures, strict=True):
        assert set(pictures) == wanted - ({"semseg label", "sal label"} if name == BARE else set())
        for uri in pictures.values():
            kind, data = uri.split(",")
            assert kind == "data:image/webp;base64"
            with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as image:
                assert image.size == (90, 60)
    assert {value for tag, value in read.having("data-picture")} == wanted
    links = [urllib.parse.unquote(value) for tag, value in read.having("data-file")]
    assert len(links) == len(NAMES) * len(TASKS)
    assert all((page.parent / link).is_file() for link in links)


def test_pictures_say_what_they_show(read):
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert all("alt" in attributes for attributes in images)
    assert "human parts predicted for first" in [attributes["alt"] for attributes in images]
    buttons = [attributes for tag, attributes in read.tags if tag == "button"]
    assert all(button.get("aria-label") or button.get("id") or "data-task" in button for button in buttons)


def test_masks_are_kept_exactly(read):
    photograph, views = example(0)
    data = base64.b64decode(read.pictures[0]["semseg"].split(",")[1])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), views["semseg"].prediction)


def test_legends(read):
    assert all(f"{text}\n" in read.text for text in ("ignored", "bird", "0 m10 m and more", "not salientsalient"))


def test_large_photographs_are_reduced():
    gallery = Gallery("t", "s", ["sal"], 1, labelled=False)
    photograph = np.zeros((300, 1500, 3), np.uint8)
    gallery.add("a", photograph, {"sal": View.create(TASKS["sal"], np.zeros((300, 1500, 1)))}, {"sal": "sal/a.png"})
    pictures = Reader(gallery.page()).pictures[0]
    sizes = {PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size for uri in pictures.values()}
    assert sizes == {(640, 128)}


def test_many_pictures_are_small():
    assert choose_side(1) == choose_side(100) == MAX_SIDE
    assert 9 * 500 * choose_side(9 * 500) ** 2 <= MAX_PIXELS
    assert choose_side(10**6) == MIN_SIDE


# Comes first in the page and records all problems from then on, including missing pictures.
WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(event.message || event.target.outerHTML.slice(0, 200)), true);
addEventListener("securitypolicyviolation", (event) => problems.push("blocked " + event.blockedURI));
</script>"""

# Acts like a user and observes the effects, which it writes into the page.
VISIT = """<script>
addEventListener("load", async () => {
  const found = {};
  const until = async (condition) => {
    for (let i = 0; i < 5000 && !condition(); i++) {
      requestAnimationFrame(() => {});  // a browser without a window draws only on request
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return condition();
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (selector) => all(selector).filter((element) => element.checkVisibility()).length;
  const loaded = (images) => images.every((image) => image.complete && image.naturalWidth > 0);
  const pressed = (name) => new KeyboardEvent("keydown", { key: name, bubbles: true });
  const key = (name) => document.activeElement.dispatchEvent(pressed(name));
  const large = () => [
    document.getElementById("large-name").textContent,
    all("#large-tasks [aria-pressed=true]").map((button) => button.dataset.task).join(),
    all("#large-labelled:not([hidden])").length,
  ];
  found.first = await until(() => loaded(all("article:first-of-type img")));
  found.later = all("article:last-of-type img[src]").length;
  found.before = [shown("article:first-of-type figure.task"), shown("article:first-of-type .label")];
  document.querySelector("[data-shows=human_parts]").click();
  found.toggled = [shown("article:first-of-type figure.task"), shown("article:first-of-type .label")];
  document.getElementById("labels").click();
  found.unlabelled = shown("article:first-of-type .label");
  document.getElementById("labels").click();
  const fader = document.querySelector(".fader");
  fader.value = 25;
  fader.dispatchEvent(new Event("input"));
  found.opacity = getComputedStyle(document.querySelector(".over")).opacity;
  document.querySelector("article:first-of-type [data-task=semseg] button").click();
  found.largeLoaded = await until(() => loaded(all("dialog img")));
  found.large = large();
  key("ArrowDown");  // skips the hidden task
  found.down = large();
  key("ArrowLeft");
  found.left = large();
  found.link = document.getElementById("large-file").getAttribute("href");
  document.getElementById("close").click();
  found.closed = document.getElementById("large").open;
  document.querySelector("article:last-of-type").scrollIntoView();
  found.scrolled = await until(() => loaded(all("article:last-of-type img")));
  const find = document.getElementById("find");
  find.value = "LATER";
  find.dispatchEvent(new Event("input"));
  found.count = document.getElementById("count").textContent;
  found.problems = problems;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""


def visit(page: pathlib.Path, profile: pathlib.Path) -> tuple[str, list[str]]:
    """(the page after its scripts ran, messages of the console)."""
    flags = [*FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=10000000", "--dump-dom"]
    command = [CHROMIUM, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_in_a_browser(page, tmp_path):
    text = page.read_text()
    visited = page.with_name("visited.html")
    visited.write_text(text.replace("<meta name", WATCH + "<meta name", 1).replace("</body>", VISIT + "</body>"))
    seen, console = visit(visited, tmp_path)
    assert console == []
    found = json.loads(Reader(seen).text.partition("Esc closes")[2].strip())
    assert found == {
        "first": True,
        "later": 0,
        "before": [4, 4],
        "toggled": [3, 3],
        "unlabelled": 0,
        "opacity": "0.25",
        "large": ["first (1 of 12)", "semseg", 1],
        "largeLoaded": True,
        "down": ["first (1 of 12)", "sal", 1],
        "left": ["later 9 (12 of 12)", "sal", 0],
        "link": "sal/later%209.png",
        "closed": False,
        "scrolled": True,
        "count": "10 of 12 images",
        "problems": [],
    }
