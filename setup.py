"""The distribution resdet: engine, backbones and detection. Tool settings are in pyproject.toml."""

from setuptools import find_packages, setup

# COCO's numbers during training in a fiftieth of the time; the tests hold them to pycocotools'
FAST = ["hotcoco>=1.3,<2"]

setup(
    name="resdet",
    version="0.1.0",
    description="Residual networks as backbones of region detectors: train, evaluate, predict",
    license="Apache-2.0",
    packages=find_packages(include=["engine*", "backbones*", "detection*"]),
    python_requires=">=3.11,<3.14",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "albumentations>=2.0.8,<3",
        "matplotlib>=3.10.8",
        "msgspec>=0.19",
        "numpy>=2.1",
        "opencv-python-headless>=4.13",
        "pycocotools>=2.0.8",
        "pydantic>=2.9.2,<3",
        "PyYAML>=6.0.2",
        "rich>=14.2",
        "safetensors>=0.5",
        "tensorboard>=2.18",
    ],
    extras_require={
        "fast": FAST,
        "dev": [  # upper bounds where a newer release may find fault with old code
            *FAST,
            "import-linter>=2.3,<3",
            "mypy>=2.4,<2.5",
            "pre-commit>=4.0",
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3.1",
            "pytest-xdist>=3.6.1",
            "ruff>=0.17,<0.18",
            "types-PyYAML>=6.0.12",
        ],
    },
)
