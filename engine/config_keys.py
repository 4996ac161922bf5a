"""Suggestions for unknown config keys: by spelling, and by the key's name in other frameworks."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from engine.errors import UserError

# Our key -> its names in other frameworks, in lower case and without _ and -.
# "a; b" lists alternatives; those that the task's schema does not have are not suggested.
KEYS_ELSEWHERE = {
    "loop.max_steps (steps = epochs x images / loop.batch_size)": "epochs epoch maxepochs numepochs"
    " numtrainepochs",
    "loop.max_steps": "maxiter maxiters iters iterations numiterations steps numsteps totalsteps",
    "loop.batch_size": "batch bs imsperbatch trainbatchsize samplespergpu batchsizepergpu",
    "data.augment.short_sides, data.augment.max_side and data.eval_short_side; augment.crop": ""
    "imgsz imgsize imagesize inputsize imgscale minsize minsizetrain shortestedge multiscale",
    "optim.lr": "lr0 baselr learningrate initiallr maxlr",
    "optim.kind": "optimizer optimiser opt solver",
    "optim.weight_decay": "wd l2",
    "optim.clip_grad_norm": "gradclip clipgrad maxnorm gradientclipval maxgradnorm",
    "schedule.kind": "scheduler lrscheduler lrschedule coslr",
    "schedule.warmup_steps": "warmup warmupiters warmupepochs numwarmupsteps",
    "loader.workers": "numworkers workerspergpu nworkers",
    "loop.accumulate": "accum accumgraditer accumulategradbatches gradientaccumulationsteps",
    "loop.precision": "amp fp16 half bf16 mixedprecision",
    "loop.ema_decay": "ema modelema",
    "loop.sync_batch_norm": "syncbn syncbatchnorm",
    "loop.eval_every": "evalinterval valinterval evalperiod valfreq evalsteps",
    "loop.checkpoint_every": "saveperiod savefreq saveinterval savesteps checkpointperiod"
    " checkpointinterval",
    "loop.log_every": "loginterval printfreq loggingsteps",
    "loop.patience": "earlystopping earlystoppingpatience",
    "model.backbone.weights; model.weights": "pretrained weights checkpoint loadfrom",
    "model.backbone.kind": "depth arch architecture backbone",
    "model.backbone.frozen_stages": "freeze freezeat frozenlayers",
    "model.rpn.anchor_sizes": "anchors anchorscales scales",
    "model.roi.score_thresh": "conf confthres confthresh scorethr threshold",
    "model.roi.nms_thresh": "iou iouthres iouthr nms nmsthr",
    "model.roi.max_detections": "maxdet maxperimg detectionsperimage",
    "data.augment.flip_prob; augment.flip_prob": "fliplr flip hflip",
    "data.augment.vertical_flip_prob": "flipud vflip",
    "data.train.annotations": "annfile annotationfile annotations trainjson trainannotations",
    "data.train.images; data.root": "imgprefix imgdir imagedir images trainimages dataroot datadir",
    "no key: classes are read from the data": "numclasses nc names classes classnames",
    "the flag --device; several GPUs: torchrun": "device gpu gpus gpuids ngpus",
    "the flag --output": "output outputdir savedir workdir project name",
    "the flag --resume": "resume autoresume resumefrom",
}
RENAMED = {
    "loop.drawn_pictures": "loop.drawn_images",
    "export.num_pictures": "export.num_images",
    "evaluation.engine": "evaluation.backend",
}
"""Keys of earlier versions, which are still accepted, and their current names."""
_KEY_HERE = {name: here for here, names in KEYS_ELSEWHERE.items() for name in names.split()}


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return config values with the keys in `RENAMED` renamed, and the old names found.

    Raises:
        UserError: a key is set under both names.
    """
    values, found = dict(values), []
    for old, new in RENAMED.items():
        part, _, name = old.partition(".")
        _, _, current = new.partition(".")
        inside = values.get(part)
        if not isinstance(inside, Mapping) or name not in inside:
            continue
        if current in inside:
            raise UserError(f"{old}: expected only its current name {new}, got both")
        values[part] = {(current if key == name else key): each for key, each in inside.items()}
        found.append(old)
    return values, found


def unknown_key_message(schema: type[BaseModel], location: Sequence[str], value: Any = None) -> str:
    """Return an error message for an unknown key, with the most likely intended key.

    It is found by the key's name in another framework, by similar spelling in the same section, or
    by the same name in another section.

    Args:
        schema: of the whole config.
        location: the names on the path to the unknown key.
        value: the key's value. For a mapping with one key, that key's name is looked up instead,
            such as BASE_LR of `SOLVER: {BASE_LR: ...}`.
    """
    *parents, wrong = location
    leaf = wrong
    while isinstance(value, dict) and len(value) == 1:
        leaf, value = next(iter(value.items()))
    section: type[BaseModel] | None = schema
    for name in parents:
        if section and not name.isdecimal():  # a number is an index into a list of models
            section = submodel(section, name)
    paths = list(key_paths(schema))
    suggestion = key_elsewhere(leaf, paths)
    if suggestion is not None:
        return f"unknown key; {suggestion}"
    names = list(section.model_fields) if section else []
    prefix = ".".join([*parents, ""])
    near = [prefix + name for name in difflib.get_close_matches(wrong, names, n=1)]
    near = near or [path for path in paths if path.split(".")[-1] == leaf]
    if near:
        return f"unknown key; nearest: {' or '.join(near)}"
    return f"unknown key; known here: {', '.join(names)}"


def submodel(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model X of a field `X`, `X | None` or `tuple[X, ...]`; None for plain values."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a schema, including sections."""
    for name in model.model_fields:
        yield prefix + name
        inner = submodel(model, name)
        if inner:
            yield from key_paths(inner, f"{prefix}{name}.")


def key_elsewhere(name: str, paths: Sequence[str]) -> str | None:
    """Return a hint at our key for another framework's name; None if the name is not known.

    Args:
        name: case, `_` and `-` do not matter.
        paths: dotted keys of the schema; others are not suggested.
    """
    ours = _KEY_HERE.get(name.lower().replace("_", "").replace("-", ""))
    if ours is None or ours.startswith(("no ", "the ")):
        return ours
    keys = [each for each in ours.split("; ") if each.split(",")[0].split(" ")[0] in paths]
    return f"here: {' or '.join(keys)}" if keys else None
