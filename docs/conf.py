"""Sphinx settings of the site; `build.py` calls Sphinx with them."""
import os, shutil
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

_settings = ConfigParser(); _settings.read(Path(os.environ["CAD_NB_ROOT"])/"settings.ini"); _settings = _settings["DEFAULT"]
project, author, version = _settings["title"], _settings["author"], _settings["version"]
release, project_copyright = version, _settings["copyright"]

extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "index"
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables in displayed Markdown
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist", "html_image", "strikethrough", "tasklist"]
myst_dmath_allow_space = myst_dmath_allow_digits = False  # a price is not a formula: Pandoc's rule
myst_heading_anchors = 4
myst_ref_domains = ["std"]
suppress_warnings = ["myst.header", "myst.strikethrough"]   # a level skipped in a notebook is no defect of the site
smartquotes = False                                        # quotes in a comment are often code

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).parent/"static"/"scorer.js")
html_favicon = "static/mark.svg"
html_copy_source = html_show_sourcelink = False
html_last_updated_fmt = None
html_show_sphinx = False
html_use_index = False
pygments_style, pygments_dark_style = "github-light", "github-dark"
html_theme_options = dict(
    light_logo="mark.svg", dark_logo="mark.svg", navigation_with_keys=True, top_of_page_buttons=[],
    light_css_variables={"color-brand-primary": "#0b6e75", "color-brand-content": "#0b6e75", "color-brand-visited": "#0b6e75", "color-code-background": "#f7f9fa"},
    dark_css_variables={"color-brand-primary": "#5fc9c5", "color-brand-content": "#5fc9c5", "color-brand-visited": "#5fc9c5", "color-code-background": "#1a1c1e"},
)
copybutton_selector = "div.highlight pre:not(.cell_output pre, .api-sig pre)"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# one file of MathJax is enough for formulas without a network; the package would copy 25 MB
mathjax_path = "tex-svg-full.js"

def copy_mathjax(app, exc):
    "Put the formula renderer beside the pages, if a page has formulas."
    if exc is None: shutil.copy(Path(next(iter(find_spec("sphinx-mathjax-offline").submodule_search_locations)))/"static/mathjax"/mathjax_path, Path(app.outdir)/"_static"/mathjax_path)

def setup(app):
    app.connect("build-finished", copy_mathjax)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
