"Figures name their corpus, leave matplotlib alone and survive odd tables; pages escape everything."
import re
import numpy as np
import pandas as pd
import pytest
import matplotlib.pyplot as plt
from cad_nb.core import stream
from cad_nb.show import plots, report

g = stream("test_show")
CURVE = np.array([0, .2, 1]), np.array([0, .9, 1])
RESULTS = pd.DataFrame(dict(method=["swap", "swap", "voice"], model=["cad", "naive", "cad"], auc=[.9, .7, np.nan], auc_lo=[.8, .6, np.nan], auc_hi=[.95, .8, np.nan], n_fake=[10, 10, 0]))
FACE, MOUTH, SPEC, SOUND = g.random((8, 16, 16, 3)), g.random((50, 8, 8)), g.random((20, 200)) - 5, g.normal(size=32000)*.1
HEATS = dict(face=g.random((8, 16, 16)), mouth=g.random((50, 8, 8)), spectrum=g.random((20, 200)))
DRAWN = dict(
    roc=lambda c: plots.roc_curves({f"model {i}": CURVE for i in range(9)}, c),                    # more models than colours
    roc_undefined=lambda c: plots.roc_curves({"cad": (CURVE[0]*np.nan, CURVE[1])}, c, notes={"cad": "undefined"}),
    offsets=lambda c: plots.offset_curves({"real": g.random((5, 31)), "one clip": g.random(31)}, c),
    scores=lambda c: plots.score_histograms({"real": g.random(9), "none": [], "lost": [np.nan, .3]}, c, threshold=.5),
    dots=lambda c: plots.auc_dots(RESULTS, c),
    dots_undefined=lambda c: plots.auc_dots(RESULTS[2:], c),
    training=lambda c: plots.training_curves(pd.DataFrame(dict(step=[1, 2]*4, panel=np.repeat(list("abcd"), 2), line="x", value=1.)), c, chosen=2),
    sheet=lambda c: plots.contact_sheet(FACE, list("abcdefgh"), c, [1, 0]*4, n_cols=3),
    sheet_one=lambda c: plots.contact_sheet((FACE[:1]*255).astype(np.uint8), ["a"], c),
    strip=lambda c: plots.clip_strip(FACE, c, MOUTH, SOUND, SPEC, (.5, .9)),
    strip_silent=lambda c: plots.clip_strip(FACE[:1], c, MOUTH),
    panel=lambda c: plots.attribution_panel(dict(face=FACE, mouth=MOUTH, spectrum=SPEC), HEATS, c, dict(face=1., mouth=-2., spectrum=0.), HEATS["face"] > .8, (.5, .9)),
    panel_video=lambda c: plots.attribution_panel(dict(face=FACE), dict(face=HEATS["face"]*0), c, duration_s=2.),
    panel_real=lambda c: plots.attribution_panel(dict(mouth=MOUTH, spectrum=SPEC), HEATS, c, dict(mouth=-1., spectrum=-2.)),
    swatches=lambda c: plots.canvas("t", c, (2, 2)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_names_its_corpus_and_leaves_matplotlib_alone(name):
    before = dict(plt.rcParams)
    figure = DRAWN[name]("embedded corpus XYZ")
    figure.canvas.draw()
    assert "embedded corpus XYZ" in [t.get_text() for t in figure.texts]
    if name != "swatches": assert not plt.get_fignums() and dict(plt.rcParams) == before
    plt.close("all")
    with pytest.raises(ValueError, match="which corpus"): DRAWN[name]("")
    plt.close("all")


def test_rows_and_models_keep_the_order_of_the_table():
    ax = plots.auc_dots(RESULTS.iloc[::-1], "c").axes[0]
    assert [t.get_text().split("\n")[0] for t in ax.get_yticklabels()] == ["voice", "swap"]
    assert any("undefined" in t.get_text() for t in ax.texts)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_saved_figures_have_the_same_bytes(tmp_path, kind):
    first, second = (plots.save(DRAWN["dots"]("c"), tmp_path/f"{i}.{kind}").read_bytes() for i in (1, 2))
    assert first == second and len(list(tmp_path.iterdir())) == 2


def test_side_by_side_thins_evenly():
    pictures = np.arange(50.)[:, None, None]*np.ones((50, 2, 2))
    row = plots.side_by_side(pictures, n_max=20, gap=0)
    assert row.shape == (2, 34) and row[0, ::2].tolist() == list(range(0, 50, 3))
    spaced = plots.side_by_side(np.full((2, 4, 4, 3), 255, np.uint8), fill=0.)
    assert spaced.shape == (4, 12, 3) and spaced[0, :, 0].tolist() == [0, 1, 1, 1, 1, 0]*2


def test_colours_stay_apart_for_the_colour_blind():
    from matplotlib.colors import to_rgb
    deutan = np.array([[.367, .861, -.228], [.280, .673, .047], [-.012, .043, .969]])       # Machado et al. 2009, linear light
    linear = lambda c: np.where(np.array(to_rgb(c)) <= .04045, np.array(to_rgb(c))/12.92, ((np.array(to_rgb(c)) + .055)/1.055)**2.4)
    seen = [np.clip(deutan@linear(c), 0, 1)**(1/2.2) for c in plots.PALETTE[:6]]
    assert min(np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]) > .1


NASTY = '<script>alert("x")</script> & |pipe| `code` \n new'


def test_pages_escape_everything_and_load_nothing():
    table = pd.DataFrame({NASTY: [NASTY, np.nan], "auc": [.5, np.nan]})
    page = report.page(NASTY, NASTY, report.section(NASTY, NASTY, table, report.html_table(table, NASTY), report.embedded(np.zeros((2, 2, 3), np.uint8), NASTY), DRAWN["dots"](NASTY.replace("\n", ""))), NASTY)
    assert "<script" not in page and "alert(\"" not in page and "nan" not in re.sub(r"base64,[^\"]*", "", page)
    assert set(re.findall(r'src="([^"]{11})', page)) == {"data:image/"} and "href" not in page and "default-src 'none'" in page


def test_markdown_cells_stay_in_their_cells():
    text = report.markdown_table(pd.DataFrame({"a|b": [NASTY, "x"], "n": [1, 2]}))
    assert len(text.splitlines()) == 4 and all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines())
    assert text.splitlines()[1] == "| --- | ---: |"


def test_numbers_as_read():
    assert [report.shown(v) for v in (None, pd.NA, np.float32("nan"), np.int64(3), .12345, -1e6, "text", np.bool_(False))] == ["–", "–", "–", "3", "0.123", "-1,000,000", "text", "no"]
    assert report.shown(.5, "coverage") == "50.0 %"
    folded = report.with_intervals(RESULTS)
    assert list(folded) == ["method", "model", "auc", "n_fake"] and folded.auc.tolist() == ["0.900 [0.800, 0.950]", "0.700 [0.600, 0.800]", "–"]
    assert "auc_lo" in RESULTS                                   # the caller's table is left alone


def test_embedded_pictures_are_png():
    import base64
    for picture in (np.zeros((3, 4), np.uint8), np.ones((3, 4, 3)), g.random((3, 4))):
        data = base64.b64decode(re.search(r"base64,([^\"]*)", report.embedded(picture, "x"))[1])
        assert data.startswith(b"\x89PNG") and report.embedded(data, "x") == report.embedded(picture, "x")


def test_page_is_written_whole(tmp_path):
    path = report.write_page(tmp_path/"a"/"p.html", report.page("Ä", "c", report.section("s", "naïve")))
    assert "naïve" in path.read_text(encoding="utf-8") and [p.name for p in path.parent.iterdir()] == ["p.html"]


def test_a_known_manipulation_is_marked_beside_the_pictures_and_not_over_them():
    for figure in (DRAWN["panel"]("c"), DRAWN["strip"]("c")):
        figure.canvas.draw()
        for ax in figure.axes:
            if not ax.images: continue
            marks = [line.get_window_extent() for line in ax.lines]
            assert len(marks) == 1 and marks[0].y0 >= ax.images[0].get_window_extent().y1 - 1, "a line lies over the picture"
    outside = plots.clip_strip(FACE, "c", MOUTH, span_s=(7., 8.))
    assert "outside" in outside.axes[-1].get_xlabel() and not any(ax.lines for ax in outside.axes)


def test_panels_that_belong_together_share_their_scales():
    weak = {k: h/10 for k, h in HEATS.items()}
    scales = {k: plots.heat_scale([HEATS[k], weak[k]]) for k in HEATS}
    draw = lambda heats, moved: plots.attribution_panel(dict(face=FACE, mouth=MOUTH, spectrum=SPEC), heats, "c", moved, scales=scales, reach=4., note="one line\nand another")
    loud, quiet = draw(HEATS, dict(face=4., mouth=-2., spectrum=0.)), draw(weak, dict(face=.4, mouth=-.2, spectrum=0.))
    limits = [[ax.images[1].get_clim() for ax in f.axes if len(ax.images) > 1] for f in (loud, quiet)]
    assert limits[0] == limits[1] and len(limits[0]) == 3 and scales["face"] == pytest.approx(np.quantile(HEATS["face"], .995))
    assert loud.axes[-1].get_xlim() == quiet.axes[-1].get_xlim() and loud.axes[-1].get_xlim()[1] >= 4 and "and another" in loud.get_supxlabel()
    assert [t.get_text() for t in quiet.axes[-1].texts] == ["face  +0.40", "mouth  −0.20", "spectrum  +0.00"]
    assert plots.heat_scale([np.zeros((2, 2)), np.full((2, 2), np.nan)]) > 0                   # nothing is hot, and a clip that the model does not judge


def test_an_executed_notebook_becomes_a_page_for_any_screen(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
    picture = new_output("display_data", {"image/png": report.embedded(np.zeros((2, 2), np.uint8), "x").split("base64,")[1].split('"')[0]})
    cells = [new_markdown_cell("# Count"), new_code_cell("from pathlib import Path\nroot = Path()"), new_code_cell("import sys; sys", outputs=[new_output("stream", name="stdout", text="said")]), new_code_cell("number = 1", outputs=[picture])]
    nbformat.write(new_notebook(cells=cells), tmp_path/"1_count.ipynb")
    page = report.executed(tmp_path/"1_count.ipynb")
    body = re.sub(r"<style.*?</style>", "", page, flags=re.S)
    assert "pathlib" not in body and "said" in body and "number" in body and "data:image/png" in body, "only a set-up cell that shows nothing goes"
    assert "img{max-width:100%" in page and not re.search(r'<script[^>]*src="https?:', page) and "<title>1_count" in page
    assert len(nbformat.read(tmp_path/"1_count.ipynb", 4).cells) == 4
    assert [report.only_set_up(s) for s in ("", "# import x", "x = 1\nimport y", "from a import b")] == [False, False, False, True]
