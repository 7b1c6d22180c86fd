"""One host that computes losses and gradients of saved states; tests/runtime/test_hosts.py starts it.

    python -m tests.runtime.host_gradients '{"config": ..., "checkpoints": ..., "fsdp": 2, "out": ...}'

Process 0 writes OUT.npz: the loss and each gradient at each checkpoint, on the batch of its step. Each process writes
OUT.INDEX.json: step, row, id and digest of the pixels that its devices were given.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from etils import epath

from jaxvision import config as config_lib
from jaxvision.data import pipeline, reader, transforms
from jaxvision.data.sources import open_source
from jaxvision.runtime import hosts, sharding
from jaxvision.training import build, optim
from jaxvision.training.step import abstract_state
from jaxvision.weights import checkpoint
from tests.elastic_host import rows_of


def main():
    options = json.loads(sys.argv[1])
    hosts.join()
    config = build.resolve(config_lib.load(options["config"], {"mesh.fsdp": str(options["fsdp"])}))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    split = sharding.batch_sharding(mesh)
    source, contract = open_source(config.data.train), reader.contract(config)
    task = build.task(config, len(source.classes))
    params, _ = build.abstract_init(task, config)
    tx, _ = optim.make(config.optim, config.steps, params, frozen=task.frozen)
    abstract = abstract_state(task, tx, build.example(config), mesh)

    def gradients(state, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, state.extra, batch, key=key, step=state.step
        )
        return loss, grads

    gradients = jax.jit(gradients, out_shardings=sharding.replicated(mesh))
    found, rows = {}, []
    for step in checkpoint.steps(epath.Path(options["checkpoints"])):
        (host,) = pipeline.train_batches(
            source, transforms.build(config.data.transforms, contract), contract, batch_size=config.batch_size,
            seed=config.seed, start=step, stop=step + 1, threads=0,
            rows=sharding.local_rows(split, config.batch_size).tolist(),
        )  # fmt: skip
        batch = sharding.put_batch(host, split, config.batch_size)
        rows += [(step, *row) for row in rows_of(batch)]
        loss, grads = gradients(checkpoint.restore(epath.Path(options["checkpoints"]) / str(step), abstract), batch)
        found[f"{step}/loss"] = np.asarray(loss)
        found |= {f"{step}/grad{k}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(grads))}
    pathlib.Path(f"{options['out']}.{hosts.index()}.json").write_text(json.dumps(rows))
    if hosts.index() == 0:
        np.savez(options["out"], **found)


if __name__ == "__main__":
    main()
