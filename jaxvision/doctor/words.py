"""The doctor's facts in words: a table of hosts, and what the train step does."""

from __future__ import annotations

from typing import Any

from jaxvision.doctor import findings


def table(facts: dict[str, Any]) -> str:
    """A row a host, with what it has otherwise than most; a single host as a list. Then what all do together."""
    them, summed = facts["hosts"], facts.get("all_reduce")
    versions = ", ".join(f"{name} {version}" for name, version in them[0]["machine"]["versions"].items())
    sums = [
        f"{r['bytes'] / 1e6:g} MB in {r['seconds'] * 1e3:.2f} ms, {r['bytes_per_s'] / 1e9:.2f} GB/s"
        for r in summed or ()
    ]
    together = [f"versions    {versions}"]
    together += [f"all-reduce  over {summed[0]['devices']} devices: {'; '.join(sums)}"] if summed else []
    together += ["all-reduce  skipped: one device"] if summed == [] else []
    rows, differ = [cells(host) for host in them], findings.odd(them)
    if len(rows) == 1:
        return "\n".join([*(f"{name:<12}{text}" for name, text in rows[0].items() if text), *together])
    rows = [{"process": str(k), **row, "differs": ", ".join(differ.get(k, ()))} for k, row in enumerate(rows)]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = ["  ".join(row[n].ljust(widths[n]) for n in names).rstrip() for row in rows]
    return "\n".join(["  ".join(n.ljust(widths[n]) for n in names).rstrip(), *lines, *together])


def cells(host: dict[str, Any]) -> dict[str, str]:
    machine, devices, disk, data = host["machine"], host.get("devices"), host.get("storage"), host.get("data")
    (ahead, within), memory = host["clock"], machine["memory"]
    found = {"machine": machine["name"], "cores": str(machine["cores"])}
    found["memory"] = f"{memory['free'] / 2**30:.1f} of {memory['total'] / 2**30:.1f} GiB free"
    found["clock"] = f"{ahead * 1e3:+.1f} ± {within * 1e3:.1f} ms" if within else ""
    found["devices"] = f"{devices['count']} x {' and '.join(devices['kinds'])}" if devices else ""
    if devices and devices["free"]:
        found["devices"] += f", {devices['free'] / 2**30:.1f} GiB free"
    good = disk if disk and "error" not in disk else None
    found["writes"] = f"{good['write'] / 1e6:,.0f} MB/s" if good else "failed"
    found["reads"] = f"{good['read'] / 1e6:,.0f} MB/s" if good else ""
    found["small file"] = f"{good['small'] * 1e3:.1f} ms" if good else ""
    found["disk left"] = f"{good['free'] / 1e9:,.0f} GB" if good and good["free"] is not None else ""
    if data:
        found["loader"] = f"{data['images_per_s']:,.0f} images/s" if "error" not in data else "failed"
    return found


def step_in_words(facts: dict[str, Any]) -> str:
    found, on_cpu = facts["step"], facts["hosts"][0]["devices"]["platform"] == "cpu"
    limit = f" of {found['limit'] / 2**30:,.2f}" if found["limit"] else ""
    lines = [f"memory      {found['used'] / 2**30:.2f}{limit} GiB a device"]
    lines += [f"checkpoint  {found['state_bytes'] / 1e6:,.1f} MB"]
    if slower := findings.bottleneck(found):
        rate, reads = found["images_per_s"], found["data_images_per_s"]
        other = (
            f"the {'loader' if slower == 'step' else 'step'} is {max(rate, reads) / min(rate, reads):.1f} times as fast"
        )
        lines += [
            f"loader      {reads:,.0f} images/s on all hosts",
            f"train step  {rate:,.0f} images/s: {found['batch_size']} in {found['seconds'] * 1e3:,.1f} ms",
            f"bottleneck  {slower}: {other}" + (", alone; together they share the CPU" if on_cpu else ""),
            f"an epoch    about {span(found['epoch_s'])}",
            f"the run     about {span(found['run_s'])} for {found['steps']:,} steps without evaluations",
        ]
    return "\n".join(lines)


def span(seconds: float) -> str:
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.1f} s"
