"""All keys of a config, with their defaults and a comment each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxvision.config.tree import as_config

# Parts that take keys beyond their defaults: names the user chooses, or arguments of what `name` names.
OPEN = ("model", "task", "evals", "optim")
OTHERWISE = {"data.size": (224, 224)}  # values of another type that a key may have
EVAL = dict(metric="topk", data="", bank="", classes="all", every_epochs=1.0, every_steps=0)


def default() -> ConfigDict:
    """A new tree with all defaults, an `ml_collections.ConfigDict`.

    Groups are sorted by key: nothing depends on the order in which keys are set, and what has an order is a tuple.
    A value of another type can be set; `check` refuses it by the key's whole name. (ConfigDict itself makes a float of
    an int or a bool that is set in a float's place, and a tuple of a list in a tuple's.)
    """
    c = as_config({})
    c.seed = 0  # of the weights, the order, the augmentation and everything random in the step
    c.batch_size = 128  # global: over all devices and hosts
    c.epochs = 0.0  # length of the run in passes over the training data, or
    c.steps = 0  # in optimiser steps: give one of the two
    c.accumulate = 1  # micro-batches a step
    c.dtype = "auto"  # of the computation: "float32", "bfloat16"; auto is bfloat16 on TPU and GPU, else float32
    c.deterministic = False  # GPU: bit-equal runs, at a price (docs/determinism.md); CPU and TPU always are
    c.init = ""  # start from these weights: a workdir, a checkpoint in one, or published ones (docs/models.md)
    c.init_policy = dict(
        fresh=(),  # patterns of leaves that start afresh although init has them, or since it lacks them
        ignore=(),  # patterns of what init has and this network has no use for
        contract=(),  # of mean, std, filter, range, background: what may differ from the weights' own
    )
    c.data = dict(
        train="",  # source URI, such as digits:train, folder:/pets/train, fake:1000x224; all kinds: docs/data.md
        size=224,  # side of the network's input in pixels, or (height, width)
        fit="crop",  # evaluation: how images come to that size; "stretch", "pad", "shortest": docs/data.md
        resize=0,  # evaluation: shorter side before the centre crop; 0 means size / 0.875, as torchvision
        longest=0,  # evaluation, fit="shortest": at most so much for the longer side; 0: as the size allows
        filter="bilinear",  # evaluation: of that resizing; or "bicubic", both antialiased; or "linear", OpenCV's
        channels=3,  # or 1
        mean=(0.485, 0.456, 0.406),  # of pixels in 0..1, one a channel
        std=(0.229, 0.224, 0.225),
        range=(),  # grey files of more than 8 bits: levels that become black and white, (0, 4095); (): all 16 bits
        background=(),  # (red, green, blue) that transparent pixels are put on; (): alpha is dropped
        transforms=(),  # training: (("random_resized_crop", {}), ("flip", {})), see jaxvision.data.transforms
        sampling="uniform",  # each sample once an epoch; "balanced": each class as often; "weighted"
        weights=(),  # weighted: (("rare class", 5.0), ...), classes not named count 1
        slots=0,  # objects of a training sample, at most; 0: as many as any sample has
        min_visible=0.1,  # share of its box that an object must keep, or it is dropped from the training sample
        repeats=1,  # times that a sample comes in a row, each with its own augmentation
        on_error="stop",  # at an unreadable image; or "skip": another comes instead, all are listed
        skip_at_most=0.01,  # skip: share of the samples above which the run stops all the same
        max_pixels=89_478_485,  # an image of more is unreadable: 7 bytes a pixel are taken while it is decoded
        threads=0,  # readers, each making whole batches; 0: one a core, at most 16
        processes=0,  # so many processes instead of threads (docs/data.md says when)
        prefetch=4,  # batches kept ready
    )
    c.model = dict(name="resnet50")  # and its arguments; the class count comes from the data
    c.task = dict(name="classification")  # binary, ordinal, multilabel, regression; and its arguments
    c.wrap = ()  # (wrapper, its arguments) pairs, applied in this order: (("ema", dict(decay=0.999)),)
    c.optim = dict(
        name="sgd",  # sgd, adamw, lamb, lars; and its arguments: momentum, nesterov, b1, b2, eps
        lr=0.1,  # peak, for this batch size: nothing is scaled behind your back
        weight_decay=0.0,  # not for biases and norms (leaves of fewer than two dimensions)
        no_decay=(),  # patterns of other leaves without it, as ("class_token", "pos_embedding") in DeiT and timm
        weight_decay_final=-1.0,  # a cosine from weight_decay to this over the run, as DINO; -1: constant
        schedule="cosine",  # constant, cosine, linear, step
        warmup_steps=0,  # linear from 0. A duration is given in one of three forms: in steps,
        warmup_epochs=0.0,  # in epochs,
        warmup_share=0.0,  # or as a share of all steps
        final=0.0,  # cosine and linear end at this share of lr
        milestones_steps=(),  # step: after which lr is multiplied, as (30_000, 60_000),
        milestones_epochs=(),  # as (30, 60),
        milestones_share=(),  # or as (0.5, 0.75)
        gamma=0.1,  # step: by this
        clip=0.0,  # largest global norm of the gradient; 0 is none
        groups=(),  # (pattern, multiplier of lr) pairs; the first that matches a leaf's name counts; 0 freezes
        layer_decay=1.0,  # fine-tuning (BEiT, MAE): lr times this for each block below the head; 1 is none
        unfreeze_steps=(),  # (pattern, duration) pairs: frozen until then; the first that matches counts;
        unfreeze_epochs=(),  # as (("layer1", 10), ("layer2", 5)),
        unfreeze_share=(),  # or as (("layer1", 0.5), ("layer2", 0.25))
    )
    # name -> dict(metric="topk", data=URI, every_epochs=1), and the metric's arguments; topk, per_class, auroc, binary
    # and ordinal measure classes, multilabel tags, regression values. Without data: a tenth of data.train is held out.
    # classes="subset": of data with some of the classes alone, the answer is one of those (ImageNet-A, -R)
    c.evals = dict()
    c.checkpoint = dict(
        every_epochs=1.0,  # 0 is never; the end and an interruption always save
        every_steps=0,
        every_minutes=0.0,  # by the clock of process 0, within a step
        keep=2,  # the last so many, and the best
        best="",  # "EVAL/METRIC" that decides the best, or "EVAL", by its first metric; "": the only eval
    )
    c.stop = dict(
        patience=0,  # end after so many evaluations in a row without a better value; 0 is never
        evaluation="",  # whose; default: that of checkpoint.best
        metric="",  # which; default: that of checkpoint.best
    )
    c.log = dict(every_steps=20, tensorboard=True, wandb="")  # wandb: a project's name
    c.mesh = dict(
        data=-1,  # devices along each axis; -1: all that are left
        fsdp=1,
        rules=(),  # (pattern, dimension to split over fsdp or -1 for none) pairs, the first that matches counts
    )
    return c


def eval_options(entry: ConfigDict) -> dict[str, Any]:
    """An entry of `evals` with its defaults: once an epoch, unless it counts steps."""
    defaults = {**EVAL, "every_epochs": 0.0} if entry.get("every_steps") else EVAL
    return {**defaults, **entry}


def deciding(config: ConfigDict) -> str:
    """The name of the evaluation that decides which checkpoint is the best: that of `checkpoint.best`, else the only
    one; "" where there is none."""
    return config.checkpoint.best.partition("/")[0] or next(iter(config.evals), "")


def measured(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options of an evaluation say about its figures: all but when it comes and which data it reads.

    Two evaluations of the same data are the same where this is equal.
    """
    return {k: v for k, v in sorted(options.items()) if k not in ("data", "every_epochs", "every_steps")}
