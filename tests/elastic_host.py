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
from jaxvision.training import loop


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


class Recorded(loop.Run):
    """Reads the batch back once the step is done, so memory that was written again too early would show."""

    def _compile(self):
        super()._compile()
        compiled, log = self.compiled, os.open(self.recording, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def recorded(state, batch):
            state, logs = compiled(state, batch)
            jax.block_until_ready(logs)
            lines = [f"{self.step} {row} {i} {digest}\n" for row, i, digest in rows_of(batch)]
            os.write(log, "".join(lines).encode())
            return state, logs

        self.compiled = recorded


def main():
    options = json.loads(sys.argv[1])
    Recorded.recording = options["log"]
    loop.Run = Recorded
    hosts.HEARTBEAT = options.get("heartbeat") or hosts.HEARTBEAT
    if "train" in options:
        cli.main(train.train, options["train"])
    hosts.join()
    assert jax.process_count() == options["hosts"]
    loop.fit(make_config(options), options["workdir"])


if __name__ == "__main__":  # worker processes import this file
    main()
