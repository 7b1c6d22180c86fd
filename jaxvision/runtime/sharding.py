"""The mesh, and which array lies where on it.

The batch is split over both axes, `data` and `fsdp`; parameters, optimiser state and averages over `fsdp`,
each along its largest divisible dimension; what cannot be split is copied to every device.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvision.errors import UserError
from jaxvision.task import leaf_name, leaf_names

BATCH = P(("data", "fsdp"))
Rules = tuple[tuple[str, int], ...]


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


def state_shardings(mesh: Mesh, tree: Any, rules: Rules = ()) -> Any:
    """A NamedSharding for each leaf (arrays or ShapeDtypeStructs): the largest dimension that fsdp divides.

    `rules`: (pattern, dimension) pairs; the first whose pattern is found in a leaf's name (such as
    "opt_state/0/mu/model/fc/kernel") says which dimension instead, -1: none, a copy for every device.
    Raises UserError for a rule that no leaf matches, or whose dimension fsdp does not divide.
    """
    parts = mesh.shape["fsdp"]
    unused = {pattern for pattern, _ in rules}

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        matching = [rule for rule in rules if re.search(rule[0], name)]
        unused.difference_update(pattern for pattern, _ in matching)
        if matching:
            axis = matching[0][1]
            dims = leaf.shape
            if dims and axis >= 0 and (axis >= len(dims) or dims[axis] % parts):
                raise UserError(
                    f"mesh.rules: {matching[0]!r} is for {name} of shape {list(dims)}, which has no dimension {axis} "
                    f"that fsdp={parts} divides"
                )
            axis = axis if dims else -1  # an optimiser may keep one number for a leaf
        else:
            sizes = [(n, -d) for d, n in enumerate(leaf.shape) if n % parts == 0 and n >= parts]
            axis = -max(sizes)[1] if sizes else -1
        if parts == 1 or axis < 0:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))

    found = jax.tree_util.tree_map_with_path(one, tree)
    if unused:
        names = leaf_names(tree)
        raise UserError(f"mesh.rules: {', '.join(map(repr, sorted(unused)))} matches no leaf; there are, for example, "
                        f"{', '.join(names[:3] + names[-1:])}")  # fmt: skip
    return found


def with_shardings(abstract: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Abstract leaves, each with the sharding it shall have on the mesh. `rules`: of `state_shardings`."""
    return jax.tree.map(placed, abstract, state_shardings(mesh, abstract, rules))


def placed(leaf: Any, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """An abstract leaf with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def on_hosts(leaf: Any) -> jax.sharding.Sharding:
    """Sharding of a host copy of a leaf.

    The copy is split over all devices where that needs no device to ask another, so that no host copies what another
    does, too. It lies in the memory of the host of each device.
    """
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:  # numpy's
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, NamedSharding):
        mesh, spec = sharding.mesh, [*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec))]
        split = [axis for axis, name in enumerate(spec) if name is not None]  # further along the same, or anywhere
        free = [axis for axis in split or range(len(spec)) if leaf.shape[axis] and leaf.shape[axis] % mesh.size == 0]
        if free and all(spec[axis] == "fsdp" for axis in split):
            axis = max(free, key=lambda axis: leaf.shape[axis])
            sharding = NamedSharding(mesh, P(*(None,) * axis, ("fsdp", "data")))
    if next(iter(sharding.device_set)).platform != "cpu":
        sharding = sharding.with_memory_kind("pinned_host")
    return sharding


def table(tree: Any) -> tuple[str, str]:
    """(one line, a line for each leaf) about leaves with shardings: bytes, and how much of it one device holds."""
    rows, whole, held, copied = [], 0, 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        whole, held, copied = whole + size, held + shard, copied + (size if shard == size else 0)
        split = "copied" if shard == size else f"split {[a or ':' for a in leaf.sharding.spec]}".replace("'", "")
        rows.append((leaf_name(path), f"{leaf.dtype}{list(leaf.shape)}", split, f"{shard:,} of {size:,} bytes"))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[3]]) for row in rows]
    line = (
        f"state: {whole / 1e6:,.1f} MB, {held / 1e6:,.1f} MB a device ({held / whole:.1%}); "
        f"{copied / 1e6:,.2f} MB of it is copied to each"
    )
    return line, "\n".join([line, *lines]) + "\n"


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """int64[R]: the rows of a global batch that this host's devices own, in ascending order."""
    owned = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = {r for index in owned for r in range(*index[0].indices(batch_size))}  # type: ignore[index]
    return np.asarray(sorted(rows), np.int64)


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Global arrays [batch_size, ...] of a batch of which each host passes its own rows."""
    if jax.process_count() == 1:  # all rows are here: one call, a third of the time
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }
