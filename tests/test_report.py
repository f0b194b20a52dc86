"""`vae-jax report`: a page that needs nothing else, as a parser and as a browser read it."""

import base64
import dataclasses
import io
import json
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from running import TINY, on_devices

from vae_jax import ELBO, Data, VaeJaxError, plots, train
from vae_jax.cli import main
from vae_jax.evaluation.evaluate import evaluate
from vae_jax.report import record, recorded, report_on
from vae_jax.report.facts import facts, in_words
from vae_jax.run import RunFolder
from vae_jax.standard_figures import standard_figures
from vae_jax.train import load_run, train_file

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
VOID = {"base", "meta", "link", "img", "br", "hr"}
NAMES = ["a<b&amp;\"'>", "<script>alert(1)</script>", "科幻 $x$", "x" * 60]
"""Names of folders: of two runs, and of figures in them."""


class Page(HTMLParser):
    """A page's elements and text, of which each that is opened must be closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.said.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of that tag."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with hostile names; the first was evaluated twice, the second not at all."""
    folders = [tmp_path_factory.mktemp("runs") / name.replace("/", "_") for name in NAMES[:2]]
    first, second = folders
    with on_devices(1):
        run = train_file(TINY, first, {"num_steps": 20})
        evaluation = evaluate(run, num_samples=2)
    for name in ("samples", "reconstructions", *NAMES[2:]):
        grid = plots.image_grid(np.random.default_rng(0).random((4, 4, 4, 1)))
        plots.save(grid, first / "figures" / f"{name}.png")
    shutil.copytree(first, second)
    content = json.loads((second / "experiment.json").read_text())
    (second / "experiment.json").write_text(json.dumps(content | {"num_steps": 30, "seed": 5}))
    finished = json.loads((second / "summary.json").read_text()) | {"step": 30}
    (second / "summary.json").write_text(json.dumps(finished))
    for samples in (2, 3):
        record(run, dataclasses.replace(evaluation, num_samples=samples), 1.0)
    return folders


def page_of(runs: list[Path], out: Path) -> Page:
    """The page about runs, checked to be whole by itself."""
    assert report_on(runs, out).path == out
    page = Page(out.read_text(encoding="utf-8"))
    assert page.elements[0] == ("html", {"lang": "en"})
    assert not page.all("script")
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset"):
                assert value is not None
                assert value.startswith(("data:", "#"))
    assert "url(" not in "".join(page.said["style"])
    assert "@import" not in "".join(page.said["style"])
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert {str(link["href"]).removeprefix("#") for link in page.all("a")} <= targets
    for image in page.all("img"):
        assert image["alt"]
        kind, _, content = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 50
            picture.load()
    return page


def test_a_page_of_one_run(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs[:1], tmp_path / "one.html")
    assert len(page.all("img")) == 3 + 2 + 2  # curves, pictures, others
    assert page.said["title"] == page.said["h1"] == [NAMES[0]]
    assert page.said["h2"] == [
        *("What was run", "Evaluation", "Curves", "Pictures", "Other figures", "Source"),
    ]
    assert {f"{NAMES[2]}.png", f"{NAMES[3]}.png"} <= {
        caption.rpartition(": ")[2] for caption in page.said["figcaption"]
    }
    assert not any("run 1" in caption for caption in page.said["figcaption"])
    labels = page.said["th"]
    for label in ("command", "model", "objective", "data", "hardware", "time", "negative ELBO"):
        assert label in labels
    command = "vae-jax train " + str(TINY)
    assert any(said.startswith(command) and "--num-steps 20" in said for said in page.said["code"])
    assert "def experiment(" in "".join(page.said["pre"])
    evaluation = recorded(RunFolder(runs[0]))[-1]
    value = (
        f"{evaluation.mean['nll'][0]:.2f} ± {evaluation.standard_error['nll'][0]:.2f} (s.e.) nats"
    )
    assert value in page.said["td"]
    meanings = [said for said in page.said["small"] if said.startswith("A tighter upper bound")]
    assert len(meanings) == 2  # of either K


def test_several_runs_stand_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs, tmp_path / "two.html")
    assert len(page.all("img")) == 3 + 4 + 4
    columns = [cell["data-run"] for cell in page.all("td") if "data-run" in cell]
    assert {*columns} == {*NAMES[:1], "<script>alert(1)<_script>"}
    assert any("was not evaluated yet" in said for said in page.said["p"])
    assert shlex.join(["vae-jax", "evaluate", str(runs[1])]) in page.said["code"]
    assert any(said.startswith("run 1 is a<b") for said in page.said["figcaption"])
    steps = [said for said in page.said["td"] if said.startswith("finished, ")]
    assert steps == ["finished, 20 steps", "finished, 30 steps"]


def test_names_are_as_short_as_they_can_be_told_apart(runs: list[Path], tmp_path: Path) -> None:
    for parent in "ab":
        shutil.copytree(runs[0], tmp_path / parent / "run")
    page = page_of([tmp_path / parent / "run" for parent in "ab"], tmp_path / "two.html")
    assert page.said["h1"] == ["a/run, b/run"]
    assert page_of([runs[0]] * 2, tmp_path / "same.html").said["h1"] == [f"{NAMES[0]}, {NAMES[0]}"]


def test_what_is_damaged_is_said_and_the_rest_is_shown(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / "evaluation.json").write_text('[{"mean": 1}]')
    shutil.rmtree(run / "checkpoints")
    (run / "figures" / "samples.png").write_bytes(b"old")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 20, "kl_sampled": [1, 2]}\n')
    page = page_of([run], tmp_path / "page.html")
    said = "".join(page.said["p"])
    assert "evaluation.json is damaged" in said
    assert "has no latest checkpoint" in said
    assert "metrics.jsonl" in said
    assert "Reconstructions" in page.said["h3"]
    assert "Samples" not in page.said["h3"]
    assert "is damaged" in capsys.readouterr().err


def test_the_command_refuses_what_is_no_run_or_no_page(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(runs[0]), "--out", str(tmp_path / "deep" / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path}/deep/page.html\n"
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert "is no run folder" in capsys.readouterr().err
    with pytest.raises(VaeJaxError, match=r"must end in \.html"):
        report_on(runs, tmp_path / "page.pdf")


def test_an_evaluation_comes_back_as_it_was(runs: list[Path]) -> None:
    entries = json.loads((runs[0] / "evaluation.json").read_text())
    for entry, evaluation in zip(entries, recorded(RunFolder(runs[0])), strict=True):
        assert {name: value.item() for name, value in evaluation.mean.items()} == entry["mean"]
        assert evaluation.num_samples == entry["num_samples"]
        assert evaluation.checkpoint == "latest, step 20"
        assert dataclasses.asdict(evaluation)["quality"] is None


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (
            {"is": "vae_jax.MLP", "features": [8], "kernel_init": {"import": "a.b"}},
            "MLP(features=(8,))",
        ),
        ({"is": "float", "of": "-inf"}, "-inf"),
        ({"import": "jax.nn.tanh"}, "tanh"),
        ({"def": "optax.a.cosine.<locals>.schedule", "alpha": 0.5, "f": {}}, "cosine(alpha=0.5)"),
        ([1, None, {"is": "dict", "of": {"a": 2}}], "(1, None, {a: 2})"),
        ({"unknown": 1}, "{'unknown': 1}"),
    ],
)
def test_parts_are_said_as_in_python(description: object, words: str) -> None:
    assert in_words(description) == words


def test_a_record_of_little_is_enough(tmp_path: Path) -> None:
    content = {"experiment": None, "data": {"fingerprint": "0"}, "file": None, "source": None}
    (tmp_path / "experiment.json").write_text(json.dumps(content | {"num_seeds": 2, "model": 3}))
    found = facts(RunFolder(tmp_path))
    assert found["command"].startswith("from Python")
    assert found["training"] == "step 0 of ?"


def test_without_its_data_a_run_shows_what_needs_none(runs: list[Path]) -> None:
    with on_devices(1):
        run = load_run(runs[0])
        data = Data.absent("bars", "dynamic", run.experiment.data.image_shape, None, "0")
        experiment = dataclasses.replace(run.experiment, data=data)
        figures = standard_figures(dataclasses.replace(run, experiment=experiment))
    assert {*figures} == {"learning_curves", "rate_and_distortion", "samples"}


@pytest.mark.slow
def test_a_run_from_python_has_its_figures_and_its_report_by_one_call(tmp_path: Path) -> None:
    """Of a run whose parts cannot be imported; shown whole in the cell of a notebook."""

    class Mine(ELBO):
        """An objective that only this test knows."""

    with on_devices(1):
        experiment = dataclasses.replace(tiny.experiment(), objective=Mine(), num_steps=10)
        run = train(experiment, tmp_path / "mine")
        report = report_on(run)
    folder = tmp_path / "mine" / "figures"
    assert report.path == folder / "report.html"
    assert {"samples.png", "reconstructions.png", "learning_curves.png"} <= {
        path.name for path in folder.iterdir()
    }
    (frame,) = Page(f"<html>{report._repr_html_()}</html>").all("iframe")
    whole = str(frame["srcdoc"]).replace('<base href="about:srcdoc">', "")
    assert whole == report.path.read_text(encoding="utf-8")
    assert "Samples" in Page(str(frame["srcdoc"])).said["h3"]
    assert str(report) == str(report.path)


def test_a_report_from_python_of_several_names_its_file(runs: list[Path], tmp_path: Path) -> None:
    with on_devices(1):
        run = load_run(runs[0])
    report_on([run, str(runs[1])], str(tmp_path / "two.html"))
    assert len(Page((tmp_path / "two.html").read_text(encoding="utf-8")).said["h1"]) == 1
    with pytest.raises(VaeJaxError, match="page about 2 runs: give out="):
        report_on(runs)
    evaluation = recorded(RunFolder(runs[0]))[0]
    with pytest.raises(VaeJaxError, match="One evaluation was given for 2 runs"):
        report_on(runs, tmp_path / "two.html", evaluation=evaluation)
    one = report_on(runs[1], tmp_path / "one.html", evaluation=evaluation).path
    assert f"K = {evaluation.num_samples}" in one.read_text()
    with pytest.raises(VaeJaxError, match="no run to report on"):
        report_on([])


@pytest.mark.slow
def test_missing_figures_are_drawn_for_the_page_alone(runs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    shutil.rmtree(run / "figures")
    with on_devices(1):
        page = page_of([run], tmp_path / "page.html")
    assert {"Samples", "Reconstructions", "Traversals", "Latents"} <= {*page.said["h3"]}
    assert not (run / "figures").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_whole_width_without_complaint(
    width: int, runs: list[Path], tmp_path: Path
) -> None:
    out = report_on(runs, tmp_path / "page.html").path
    assert "CONSOLE" not in browse(out)[1]
    # The page allows no script, so a copy that does is measured; windows have at least 500 pixels,
    # frames any number.
    before, _, after = out.read_text().partition('<meta http-equiv="Content-Security-Policy"')
    copy = before + after.partition(">")[2].replace("</body>", f"{MEASURE}</body>")
    (tmp_path / "measured.html").write_text(copy)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    dom, console = browse(tmp_path / "frame.html")
    assert "CONSOLE" in console  # so a complaint would have been seen above
    (body,) = Page(dom).all("body")
    inner, scrolled, cut, drawn = json.loads(str(body["data-seen"]))
    assert inner == width
    assert scrolled <= width
    assert cut == []
    assert drawn


MEASURE = """<script>
console.log("measuring")
addEventListener("load", () => {
  const cut = [...document.querySelectorAll("body *")].filter(
    each => each.getBoundingClientRect().right > innerWidth + 1)
  const drawn = [...document.images].every(each => each.complete && each.naturalWidth > 0)
  const scrolled = document.documentElement.scrollWidth
  const tags = cut.map(each => each.tagName)
  parent.postMessage(JSON.stringify([innerWidth, scrolled, tags, drawn]), "*")
})
</script>"""
FRAME = """<!doctype html><html lang="en"><head><title>frame</title></head><body>
<script>addEventListener("message", event => document.body.dataset.seen = event.data)</script>
<iframe src="measured.html" style="border: 0; width: {width}px; height: 900px"></iframe>
</body></html>"""


def browse(page: Path) -> tuple[str, str]:
    """What headless Chromium makes of a page, and what it says meanwhile."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    flags += ["--virtual-time-budget=10000", "--window-size=1300,900"]
    done = subprocess.run(
        [CHROMIUM, *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr
