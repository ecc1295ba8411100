"""Build with ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import warnings

from sphinx_gallery.sorting import ExplicitOrder

import skvae

project = "skvae"
author = "the skvae developers"
project_copyright = author
release = version = skvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/**.ipynb", "auto_examples/*.py"]
default_role = "py:obj"  # a link where there is something of that name, else code

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
html_css_files = ["prompts.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False, "show_toc_level": 2}
html_sidebars = {"changelog": [], "measurements": [], "security": [], "policy": []}

# ------------------------------------------------------------------ docstrings

autosummary_generate = True
templates_path = ["_templates"]
numpydoc_show_class_members = False
autodoc_typehints = "none"  # the docstrings say more
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links of Markdown files to files of the repository

# ------------------------------------------------------------------ examples

ORDER = [
    "quickstart.py",
    "plot_components.py",
    "plot_mixed_table.py",
    "plot_imputation.py",
    "plot_anomalies.py",
    "plot_topics.py",
    "plot_images.py",
    "plot_time_series.py",
    "plot_few_labels.py",
    "plot_own_parts.py",
    "plot_grid_on_dask.py",
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/(plot_|quickstart)",
    "within_subsection_order": ExplicitOrder(ORDER),
    "abort_on_example_error": True,
    "reference_url": {"skvae": None},  # names in the code are links
    "show_signature": False,
    "download_all_examples": False,
}


warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")


def setup(app):
    """Leave out what scikit-learn and torch give every estimator and module."""

    def skip(app, what, name, obj, skip, options):
        return skip or not (getattr(obj, "__module__", None) or "skvae").startswith("skvae")

    app.connect("autodoc-skip-member", skip)
