"""Packages of the wheel; all else stands in pyproject.toml, which cannot rename a folder.

`configs/NAME` is installed as `detection/configs/NAME`: as a top-level folder it could collide with
one of another project. `tools/` and `tests/` stay in the repository.
"""

from setuptools import find_namespace_packages, find_packages, setup

code = find_packages(include=["engine*", "backbones*", "detection*"])
configs = [f"detection.configs.{name}" for name in find_namespace_packages("configs")]
setup(packages=[*code, *configs], package_dir={"detection.configs": "configs"})
