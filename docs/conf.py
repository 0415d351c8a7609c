"""Settings of Sphinx, each with its reason."""

import os
import sys
from pathlib import Path

import finetune_kit

sys.path.insert(0, str(Path(__file__).parent))  # for quickstart_setup, which the how-to pages use

project = "finetune-kit"
author = project_copyright = "the finetune-kit developers"
version = release = finetune_kit.__version__
extensions = [
    "myst_nb",  # pages in Markdown, as the README, and notebook.md, which it runs
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's style, as in Keras
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
html_theme = "furo"  # readable on narrow screens, light and dark
html_title = f"finetune-kit {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
exclude_patterns = ["_build", "study"]  # study: tables that chest_xray.md includes
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings within and across pages
nb_execution_mode = "force"  # of pages that name a kernel; a cache would show old outputs
nb_execution_raise_on_error = True  # a cell that fails fails the build
nb_execution_timeout = 300  # seconds of a cell; all of them take less than 60 on two cores
nb_output_stderr = "remove"  # TensorFlow's notes on the machine
copybutton_selector = (
    "div.highlight-python pre, div.highlight-ipython3 pre, div.highlight-default pre, "
    "div.highlight-console pre"
)
copybutton_prompt_text = "$ "  # copies the commands without the prompt
default_role = "code"  # single backticks in docstrings mean code, as in Markdown
add_module_names = False  # `ImageSet`, not `finetune_kit.ImageSet`; hides the private modules too
autodoc_typehints = "none"  # the docstrings describe types, shapes and units
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
# `Attributes:` as a list under that name, not as a second entry of each field.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_attr_annotations = False  # annotations name private modules; the docstrings do not
napoleon_use_rtype = False  # the type is in the signature already
toc_object_entries = False

# Types of other libraries, whose object lists cannot be downloaded without a network.
nitpick_ignore_regex = [
    ("py:.*", r"(keras|np|numpy|NDArray|ArrayLike|KW_ONLY|PIL|os|pathlib|collections|Path)\b.*"),
    ("py:.*", r"(Mapping|Sequence|Callable|Hashable|Any|optional|default).*"),
]

doctest_global_setup = """
import numpy as np
import keras
import finetune_kit as ftk
from finetune_kit import *
"""
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
