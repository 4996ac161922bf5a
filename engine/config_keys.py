"""Which key was meant: the nearest by spelling, or what other frameworks' names are called here."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from engine.errors import UserError

# What a key is called here, and in small letters and without _ and - what it is called elsewhere.
# "a; b": one or the other, as the task has it.
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
}
"""Keys of earlier versions, which are still understood, and what they are called now."""
_HERE = {name: here for here, names in KEYS_ELSEWHERE.items() for name in names.split()}


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return config values with `RENAMED` keys under their current names, and the old names found.

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
            raise UserError(f"{old}: expected {new}, as it is called now, got both")
        values[part] = {(current if key == name else key): each for key, each in inside.items()}
        found.append(old)
    return values, found


def unknown_key_message(schema: type[BaseModel], location: Sequence[str], value: Any = None) -> str:
    """Say which key was meant.

    By another framework's name, by spelling at that place, or by name anywhere.

    Args:
        schema: of the whole config.
        location: the names down to the unknown key.
        value: what the key was given; the names within a mapping tell too, SOLVER.BASE_LR.
    """
    *parents, wrong = location
    leaf = wrong
    while isinstance(value, dict) and len(value) == 1:
        leaf, value = next(iter(value.items()))
    here: type[BaseModel] | None = schema
    for name in parents:
        if here and not name.isdecimal():  # a place in a list of models
            here = submodel(here, name)
    paths = list(key_paths(schema))
    meant = _meant(leaf, paths)
    if meant is not None:
        return f"unknown key; {meant}"
    names = list(here.model_fields) if here else []
    prefix = ".".join([*parents, ""])
    near = [prefix + name for name in difflib.get_close_matches(wrong, names, n=1)]
    near = near or [path for path in paths if path.split(".")[-1] == leaf]
    if near:
        return f"unknown key; nearest: {' or '.join(near)}"
    return f"unknown key; known here: {', '.join(names)}"


def submodel(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model in a field `X`, `X | None` or `tuple[X, ...]`; None for plain values."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a schema, those of parts too."""
    for name in model.model_fields:
        yield prefix + name
        inner = submodel(model, name)
        if inner:
            yield from key_paths(inner, f"{prefix}{name}.")


def _meant(name: str, paths: Sequence[str]) -> str | None:
    """Return what another framework's name is called here; None: not a known one."""
    here = _HERE.get(name.lower().replace("_", "").replace("-", ""))
    if here is None or here.startswith(("no ", "the ")):
        return here
    keys = [each for each in here.split("; ") if each.split(",")[0].split(" ")[0] in paths]
    return f"here: {' or '.join(keys)}" if keys else None
