"""The mesh, and which array lies where on it.

The batch is split over both axes, `data` and `fsdp`; parameters, optimiser state and averages over `fsdp`,
each along its largest divisible dimension; what cannot be split is copied to every device.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision.errors import UserError

BATCH = P(("data", "fsdp"))


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh of all devices (or those given) with axes `data` and `fsdp`; one size may be -1: what is left.

    Raises UserError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = [data, fsdp]
    if -1 in sizes:
        known = -data * fsdp
        if known < 1 or count % known:
            raise UserError(f"mesh: {count} devices cannot be split with data={data}, fsdp={fsdp}")
        sizes[sizes.index(-1)] = count // known
    if sizes[0] * sizes[1] != count:
        raise UserError(f"mesh: data={data} times fsdp={fsdp} is not the number of devices, {count}; use -1 for one")
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """A NamedSharding for each leaf (arrays or ShapeDtypeStructs): the largest dimension that fsdp divides."""
    parts = mesh.shape["fsdp"]

    def one(leaf: Any) -> NamedSharding:
        sizes = [(n, -d) for d, n in enumerate(leaf.shape) if n % parts == 0 and n >= parts]
        if parts == 1 or not sizes:
            return NamedSharding(mesh, P())
        axis = -max(sizes)[1]
        return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))

    return jax.tree.map(one, tree)


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """int64[R]: the rows of a global batch that this host's devices own, in ascending order."""
    owned = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = {r for index in owned for r in range(*index[0].indices(batch_size))}  # type: ignore[index]
    return np.asarray(sorted(rows), np.int64)


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """This host's rows as part of global arrays [batch_size, ...]."""
    if jax.process_count() == 1:  # all rows are here: one call, a third of the time
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }
