#!/bin/sh
# Collect in .gpu/ what a bare GPU machine without a network needs beside the repository.
#
# sh tools/lab/gpu_check/prepare.sh DATA PYTHON_VERSION: DATA holds coco128/ and bccd/. Wheels are
# those that a machine with torch usually lacks, for that version of Python (such as 3.12).
set -e
mkdir -p .gpu
cp -r "$1/coco128" .gpu/ && rm -rf .gpu/coco128/results
mkdir -p .gpu/bccd && cp -r "$1/bccd/images" "$1/bccd/annotations" .gpu/bccd/
chmod -R u+w .gpu
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$2" --implementation cp \
  --abi "cp$(echo "$2" | tr -d .)" --abi abi3 --abi none --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --platform manylinux1_x86_64 --platform any -d .gpu/wheels albumentations==2.0.8 albucore==0.0.24 \
  simsimd stringzilla msgspec pycocotools pydantic==2.14.4 pydantic_core==2.50.5 annotated-types \
  typing-inspection typing_extensions hotcoco hypothesis torchcodec
du -sm .gpu
