"""One host of a training that writes down every row that its devices were given.

tests/test_elastic.py trains on a folder, through fit(); tests/test_chaos.py runs the command, with all that it does
around fit() where another host fails:

    python -m tests.elastic_host '{"hosts": 2, "data": ..., "workdir": ..., "log": ..., ...}'
    python -m tests.elastic_host '{"train": ["--config", ...], "log": ..., "heartbeat": 10}'
"""

import hashlib
import json
import os
import sys

import jax
import numpy as np

import jaxvision.config
from jaxvision import cli, train
from jaxvision.runtime import hosts
from jaxvision.training import loop, session


def make_config(options):
    config = jaxvision.config.default()
    config.data.update(
        train=f"folder:{options['data']}",
        size=16,
        resize=16,
        transforms=(
            ("random_resized_crop", {}),
            ("flip", {}),
            ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
        ),
        threads=options["threads"],
        processes=options["processes"],
    )
    config.seed = 7
    config.batch_size = 16
    config.steps = options["steps"]
    config.model = dict(name="resnet18", width=8, depths=(1, 1), stem="small")
    config.checkpoint.update(every_epochs=0.0, every_steps=options["save"])
    config.log.update(every_steps=50, tensorboard=False)
    return config


def rows_of(batch):
    """(row of the global batch, id, digest of pixels and label) of the rows on this host's devices."""
    found = {}
    for image, label, index in zip(*(batch[key].addressable_shards for key in ("image", "label", "index"))):
        first = image.index[0].indices(batch["image"].shape[0])[0]
        images, labels, ids = np.asarray(image.data), np.asarray(label.data), np.asarray(index.data)
        for k in range(len(ids)):
            digest = hashlib.sha256(images[k].tobytes() + labels[k].tobytes()).hexdigest()
            found[first + k] = (int(ids[k]), digest)
    return [(row, *found[row]) for row in sorted(found)]


def recorded(programs, recording):
    """`session.compile_programs`, whose step reads its batch back once it is done, so memory that was written again too
    early would show."""

    def compile_programs(*arguments):
        step, *others = programs(*arguments)
        log = os.open(recording, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def read_back(state, batch):
            number = int(state.step)
            state, logs = step(state, batch)
            jax.block_until_ready(logs)
            lines = [f"{number} {row} {i} {digest}\n" for row, i, digest in rows_of(batch)]
            os.write(log, "".join(lines).encode())
            return state, logs

        return read_back, *others

    return compile_programs


def main():
    options = json.loads(sys.argv[1])
    session.compile_programs = recorded(session.compile_programs, options["log"])
    hosts.HEARTBEAT = options.get("heartbeat") or hosts.HEARTBEAT
    if "train" in options:
        cli.main(train.train, options["train"])
    hosts.join()
    assert jax.process_count() == options["hosts"]
    loop.fit(make_config(options), options["workdir"])


if __name__ == "__main__":  # worker processes import this file
    main()
