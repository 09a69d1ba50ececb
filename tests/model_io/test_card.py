"""The model card shows the contents of config.json, in a form that the Hugging Face Hub reads."""

import copy
import re
import sys

import micro
import numpy as np
import pytest

from mtlora_jax.defaults import default
from mtlora_jax.experiment import describe_training
from mtlora_jax.model_io import model_folder
from mtlora_jax.model_io.card import card
from mtlora_jax.model_io.initial_weights import origin_of
from mtlora_jax.models import parameters

ARCHITECTURE = micro.architecture(stages=1)
SCORES = {"semseg/mIoU": 61.234, "semseg/IoU/a": 5.5, "normals/rmse": 27.5, "normals/mean": 18.25, "delta_m": 2.541}
TRAINING = {
    "command": "python -m mtlora_jax.main --config=configs/x.py",
    "config": {"data": {"name": "folder", "eval_split": "val"}},
}
FULL = {
    "architecture": ARCHITECTURE,
    "classes": {"semseg": ["a", "b", "c"]},
    "step": 300,
    "scores": SCORES,
    "training": TRAINING,
    "started_from": {"folder": "swin_tiny", "file": "swin_tiny_patch4_window7_224.pth", "format": "swin"},
}


def metadata(text: str) -> dict:
    yaml = pytest.importorskip("yaml")
    start, front, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


@pytest.fixture(scope="module")
def full() -> str:
    return card({**FULL, "scores": {**SCORES, "gain_over_first": 13699.66}}, {"a": np.zeros((2, 3)), "b": np.zeros(4)})


def test_metadata_for_the_hub(full):
    found = metadata(full)
    assert found["library_name"] == "mtlora_jax"
    assert found["pipeline_tag"] == "image-segmentation"
    assert set(found["tags"]) >= {"mtlora", "jax", "swin", "semseg", "sal", "normals"}
    assert found["base_model"] == "microsoft/swin-tiny-patch4-window7-224"
    assert found["base_model_relation"] == "finetune"


def test_the_hubs_own_reader_takes_it(full):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(full).data
    assert data.library_name == "mtlora_jax"
    assert data.base_model == "microsoft/swin-tiny-patch4-window7-224"


def test_scores_training_and_numbers(full):
    lines = full.splitlines()
    assert "# MTLoRA on Swin of its own size: semseg, sal, normals" in lines
    assert "| semseg | mIoU | 61.23 |  |" in lines
    assert "| semseg | 3 | a, b, c |" in lines
    means = [line for line in lines if line.startswith("| normals | ") and "degrees" in line]
    assert [line.split(" | ")[1:3] for line in means] == [["mean", "18.25"], ["rmse", "27.5"]]  # the primary one first
    assert "| all | delta_m | +2.54 | percent over models of one task each |" in lines
    assert "    python -m mtlora_jax.main --config=configs/x.py" in lines
    assert "IoU/a" not in full
    assert "After 300 training steps, on the split `val` of" in full
    assert "This folder stores 10 values" in full
    assert "was not evaluated" not in full
    assert "gain" not in full
    for title in ("Use", "Scores", "Parameters", "Where it comes from", "Licence"):
        assert lines.count(f"## {title}") == 1


def test_a_converted_checkpoint_without_scores_says_so():
    text = card({"architecture": ARCHITECTURE, "converted_from": {"file": "r64.pth", "format": "mtlora"}}, {})
    assert "None: these weights were converted from `r64.pth` and not evaluated since." in text
    assert "base_model" not in metadata(text)


def test_started_from_a_folder_of_unknown_origin():
    told = card({**FULL, "started_from": {"folder": "demo_swin"}}, {"a": np.zeros(4)})
    assert "Training started from the model folder `demo_swin`.\n" in told


def test_nothing_known():
    text = card({"architecture": ARCHITECTURE}, {})
    assert "None: this model was not evaluated." in text
    assert "Not recorded." in text


def test_an_adapter_names_its_base():
    text = card({**FULL, "adapter": {"base": "swin_tiny", "sha256": "ab" * 32}}, {})
    assert metadata(text)["base_model_relation"] == "adapter"
    assert 'mtlora_jax.load("FOLDER", base="BASE")' in text
    assert "ab" * 32 in text


def test_a_bare_backbone():
    text = card({"architecture": micro.architecture("full", tasks=(), stages=1)}, {})
    assert metadata(text)["pipeline_tag"] == "image-feature-extraction"
    assert "model.features(images)" in text


def test_scores_that_are_no_numbers():
    text = card({"architecture": ARCHITECTURE, "scores": {"semseg/mIoU": float("nan"), "sal/mIoU": None}}, {})
    assert "| semseg | mIoU | nan |" in text
    assert "| sal | mIoU | none |" in text


def test_training_leaves_what_the_card_tells(tmp_path, monkeypatch):
    bare = micro.architecture("full", tasks=(), stages=1)
    origin = {"file": "swin.pth", "format": "swin"}
    model_folder.save(tmp_path / "swin", bare, parameters.host_arrays(micro.fresh(bare)), {"converted_from": origin})
    assert origin_of(str(tmp_path / "swin")) == {"folder": "swin", **origin}
    started = {"started_from": {"folder": "swin", **origin}}
    model_folder.save(tmp_path / "best", bare, parameters.host_arrays(micro.fresh(bare)), started)
    assert origin_of(str(tmp_path / "best")) == {"folder": "best", **origin}

    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "mtlora_jax.main", "--config=a b.py"])
    told = describe_training(default())
    assert told["command"] == "python -m mtlora_jax.main '--config=a b.py'"
    assert told["config"]["method"]["rank"] == 64
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    assert describe_training(default())["command"] == ""


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "a\n| b | c | d |\n\n# heading\n\n---\nlicense: mit\n---\n",
    "``` ` `` `x` <!-- ",
    "\n```\n<script>alert(1)</script>\n```\n",
    "[here](javascript:alert(1)) ![x](https://a.example/x.png) <https://a.example> https://a.example www.a.example",
    "**bold** _stressed_ __init__ ~~gone~~ $x$ \\",
    "</code></pre></details><b>&lt;b&gt;",
    'x": y\nlicense: "mit',
    "{{ 7 * 7 }} {% raw %}",
    "\u2028\x85\x00\x1b[31m\u202e\udcff",
)


def tokens_of(text: str) -> list:
    """All Markdown tokens of a card, without its metadata."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    parsed = parser.enable(["table", "strikethrough"]).parse(text.split("---\n", 2)[2])
    return [part for token in parsed for part in (token, *(token.children or ()))]


def shape_of(text: str) -> list[str]:
    """Types of the Markdown tokens of a card, without inline text and code, whose number may differ."""
    inside = ("text", "softbreak", "code_inline", "html_inline", "fence", "code_block", "html_block")
    return [token.type for token in tokens_of(text) if token.type not in inside]


def html_of(text: str) -> set[str]:
    """All names of elements in a card."""
    raw = [token.content for token in tokens_of(text) if token.type in ("html_inline", "html_block")]
    return set(re.findall(r"<\s*/?\s*([a-zA-Z!]+)", " ".join(raw)))


def with_text(text: str, scores: dict) -> dict:
    """A config.json with `text` in every place that holds a text."""
    architecture = copy.deepcopy(ARCHITECTURE)
    architecture["method"]["task_rank"][text[:100].replace("\udcff", "")] = 1
    return {
        "architecture": architecture,
        "classes": {"semseg": ["a", text, "c"], "normals": [text]},
        "step": 300,
        "scores": scores,
        "training": {"command": text, "config": {"data": {"name": text, "eval_split": text}, text: text}},
        "started_from": {"folder": text, "file": text, "format": text},
        "converted_from": {"file": text, "format": text},
        "base_model": text,
        "adapter": {"base": text, "sha256": text},
    }


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("evaluated", [True, False])
def test_texts_of_strangers_are_no_markup(text, evaluated):
    name = text.replace("/", "")  # with one, it is the score of a class, which the card leaves out
    told, plain = (
        card(with_text(t, {f"semseg/{n}": 1.0} if evaluated else {}), {}) for t, n in ((text, name), ("x", "x"))
    )
    assert "<script" not in told
    assert html_of(told) <= {"details", "summary", "code", "pre"}
    assert shape_of(told) == shape_of(plain)
    assert metadata(told).keys() == metadata(plain).keys()
    told.encode()


def test_texts_show_as_they_are():
    classes = {"semseg": ["a|b", "<c>", "d_e *f*"]}
    told = card({**FULL, "classes": classes}, {"a": np.zeros(4)})
    cells = [token.content for token in tokens_of(told) if token.type == "text"]
    assert "".join(cells).count("a|b, <c>, d_e *f*") == 1
